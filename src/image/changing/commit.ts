/** Writes what an image holds into the image that it stands on. */
import fs from 'node:fs'
import path from 'node:path'
import { ImageError, ImageInUse } from '../../errors.js'
import type { Extent, View } from '../../formats/driver.js'
import type { LayerSpec } from '../../formats/format.js'
import { formatOf } from '../../formats/registry.js'
import { closeFolders, holdFolders } from '../../io/folders.js'
import { lockImage } from '../../io/locks.js'
import type { WritableDisk } from '../../formats/writable.js'
import { rewriteReference } from './change-reference.js'
import { type Chain, closeChain } from '../opening/chain.js'
import { ImageCheck } from '../checking/check.js'
import { type AskPassphrase, lockChain, unlockChain } from '../opening/encryption.js'
import { readView, lookupAt } from '../reading/engine.js'
import { ViewSet } from '../reading/view-set.js'
import { diskBytes, filesOf, layerOfFile, referenceOf } from '../layer.js'
import { namingItsMount, unlessMounted } from '../opening/mounted.js'
import { openChain } from '../opening/open-chain.js'
import { OPENED_FILES } from '../opening/store-source.js'
import { requireUnneeded } from '../opening/write-protection.js'
import { openWrittenSet, SINGLE_THREAD_CACHES } from '../writing/written-set.js'

export interface CommitOptions {
  readonly format?: string | undefined
  readonly allowPaths?: readonly string[]
  /** The file of the layer to write into; by default the nearest one. */
  readonly base?: string | undefined
  /** Whether the image keeps its data. It always does if the base is not the nearest layer. */
  readonly keep?: boolean
  /** Whether to read a vmdk whose parent has changed since: a commit that was cut off leaves such an image. */
  readonly ignoreCid?: boolean
  /** Whether to change a base that other images or snapshots need, which breaks those. */
  readonly force?: boolean
  readonly ask: AskPassphrase
  /** Called between pieces, in bytes of the disk. */
  readonly progress?: (doneBytes: number, totalBytes: number) => Promise<void>
}

export interface Committed {
  readonly base: string
  /** Bytes of the disk that were written into the base, zeros included. */
  readonly bytes: number
  /** Whether the image is empty now. */
  readonly isEmptied: boolean
  readonly warnings: readonly string[]
}

const PIECE_BYTES = 2 ** 20

type Layers = readonly [LayerSpec, ...LayerSpec[]]

/**
 * Writes what the layers above the base hold into the base, and then, if nothing else reads it, empties the image. The image
 * reads as before also after an error or a power cut: it keeps its data until the base has them for good. Throws ImageError,
 * SystemError.
 */
export async function commitImage(name: string, options: CommitOptions): Promise<Committed> {
  const committed = await commitLocked(name, options)
  if (!committed.isEmptied) return committed
  await giveBackLeaks(name, options)
  return committed
}

async function giveBackLeaks(name: string, options: CommitOptions): Promise<void> {
  let image: ImageCheck | undefined
  try {
    image = ImageCheck.open(name, { ...options, repair: 'leaks' })
    await image?.run()
  } catch (error) {
    // Somebody uses the image already. The commit is done, and the space can wait.
    if (!(error instanceof ImageInUse)) throw error
  } finally {
    image?.close()
  }
}

async function commitLocked(name: string, options: CommitOptions): Promise<Committed> {
  const { format, allowPaths = [], ignoreCid = false } = options
  const open = () => openChain(name, { format, allowPaths, ignoreCid })
  const locked = open()
  try {
    const index = baseIndex(locked, options.base)
    unlessMounted(() => lockLayers(locked.layers.slice(0, index)))
    // Another command may have changed the tables between reading the headers and locking the files: read them again.
    const opened = open()
    try {
      requireSameFiles(locked, opened)
      if (!options.force) requireCommittable(opened, index)
      return await commitTo({ ...opened, warnings: locked.warnings }, index, options)
    } finally {
      closeChain(opened)
    }
  } catch (error) {
    throw namingItsMount(error)
  } finally {
    closeChain(locked)
  }
}

async function commitTo(opened: Chain, index: number, options: CommitOptions): Promise<Committed> {
  const chain = await unlockChain(opened, options.ask)
  try {
    const written = await writeBase(chain, index, options)
    followBase(chain.layers, index)
    const isEmptied = index === 1 && !options.keep && (await makeEmpty(chain.layers))
    const warnings = [...chain.warnings, ...written.warnings]
    return { base: written.path, bytes: written.bytes, isEmptied, warnings }
  } finally {
    lockChain(chain)
  }
}

function requireSameFiles(locked: Chain, opened: Chain): void {
  const identities = ({ layers }: Chain) =>
    layers.flatMap(filesOf).map(({ fd }) => {
      const { dev, ino } = fs.fstatSync(fd, { bigint: true })
      return `${dev}:${ino}`
    })
  if (identities(locked).join() === identities(opened).join()) return
  throw new ImageError('REFUSED', 'another program has replaced a file of it meanwhile', {
    path: locked.layers[0].path,
    hint: 'try again',
  })
}

function baseIndex({ layers, depth }: Chain, base: string | undefined): number {
  const [{ path: image }] = layers
  if (depth < 2) {
    throw new ImageError('REFUSED', 'it has no backing file that it could be committed to', {
      path: image,
      hint: 'to copy it as a whole, use vimgfs convert',
    })
  }
  if (base === undefined) return 1
  const index = layerOfFile(layers.slice(0, depth), base)
  if (index > 0) return index
  const below = layers.slice(1, depth).map(layer => layer.path)
  throw new ImageError('REFUSED', `"${base}" is none of the images that it stands on`, {
    path: image,
    hint: `name one of ${below.join(', ')}`,
  })
}

/** Keeps others from using the image and the layers above the base. */
function lockLayers(layers: readonly LayerSpec[]): void {
  for (const layer of layers) {
    for (const { fd, path: file } of filesOf(layer)) lockImage(fd, file, 'write')
  }
}

/** Throws ImageError if something besides the image itself reads through the base, and so would change. */
function requireCommittable({ layers, snapshots, layerSnapshots }: Chain, index: number): void {
  const above = layerSnapshots.filter(({ layer }) => layer < index).length + snapshots.length
  if (above > 0) {
    throw new ImageError('REFUSED', 'it has snapshots, which read from the base, too', {
      path: layers[0].path,
      hint: 'delete them first, or change them with --force',
    })
  }
  const base = layers[index] as LayerSpec
  const folders = holdFolders([path.dirname(base.path)])
  try {
    const names = layers.slice(0, index).map(layer => path.basename(layer.path))
    requireUnneeded(base, [], folders, names)
  } finally {
    closeFolders(folders)
  }
}

async function writeBase(chain: Chain, index: number, options: CommitOptions) {
  const { path: file, format } = chain.layers[index] as LayerSpec
  const { allowPaths = [], ask } = options
  const opened = openChain(file, {
    ...{ format, allowPaths, access: 'write', takesLocks: true, force: true },
  })
  try {
    const base = await unlockChain(opened, ask)
    try {
      const { disk, warnings } = openWrittenSet(base.layers)
      let bytes = 0
      let lost: readonly string[] = []
      try {
        growBase(chain, disk, file)
        bytes = await copy(chain, index, disk, options)
      } finally {
        lost = disk.close()
      }
      return { path: file, bytes, warnings: [...warnings, ...lost] }
    } finally {
      lockChain(base)
    }
  } finally {
    closeChain(opened)
  }
}

/** Makes the base as large as the image. Throws ImageError if it cannot be, and then nothing has changed. */
function growBase({ layers }: Chain, disk: WritableDisk, file: string): void {
  const sizeBytes = diskBytes(layers[0])
  if (sizeBytes <= disk.sizeBytes) return
  try {
    disk.grow(sizeBytes)
  } catch (error) {
    if (!(error instanceof ImageError) || error.code !== 'REFUSED') throw error
    const what = `the image is larger than its base, and ${error.message}`
    const hint = `make the base larger first: vimgfs resize ${file} ${sizeBytes}`
    throw new ImageError('REFUSED', what, { path: file, hint })
  }
}

/** Writes what the layers above `index` have into `disk`. Returns how many bytes those are. */
async function copy(
  { layers }: Chain,
  index: number,
  disk: WritableDisk,
  { progress }: CommitOptions,
): Promise<number> {
  const sizeBytes = diskBytes(layers[0])
  let hasFollowed = false
  const view = new ViewSet(layers, SINGLE_THREAD_CACHES).layerView(0)
  const buffer = Buffer.alloc(PIECE_BYTES)
  let bytes = 0
  for (let offset = 0; offset < sizeBytes; ) {
    const { kind, length } = heldAbove(view, index, offset, sizeBytes - offset)
    const piece = kind === 'data' ? Math.min(length, PIECE_BYTES) : length
    if (kind === 'data') readView(view, buffer, 0, piece, offset)
    try {
      if (kind === 'zero') disk.zero(offset, piece)
      else if (kind === 'data') disk.write(buffer, 0, piece, offset)
    } finally {
      // The first change gives the base a new content ID, also if it fails after that. The image has to open all the same.
      if (kind !== 'base' && !hasFollowed) hasFollowed = followBase(layers, index)
    }
    if (kind !== 'base') bytes += piece
    offset += piece
    await progress?.(offset, sizeBytes)
  }
  return bytes
}

/** Returns what the disk is from `offset` on: data or zeros of the first `count` layers, or what the base has. */
function heldAbove(
  view: View,
  count: number,
  offset: number,
  length: number,
): { readonly kind: 'data' | 'zero' | 'base'; readonly length: number } {
  let rest = length
  let layer: View | undefined = view
  for (let i = 0; i < count && layer; i++, layer = layer.parent) {
    const { driver }: View = layer
    // Past the end of a shorter layer the layers above read zeros.
    if (offset >= driver.sizeBytes) return { kind: 'zero', length: rest }
    const extent: Extent = lookupAt(driver, offset, Math.min(rest, driver.sizeBytes - offset))
    if (extent.kind === 'zero') return { kind: 'zero', length: extent.length }
    if (extent.kind !== 'parent') return { kind: 'data', length: extent.length }
    rest = extent.length
  }
  return { kind: 'base', length: rest }
}

/**
 * Makes the layer above the base name the base as it is now, where it would not open otherwise. Returns false if the base has not
 * changed so far.
 */
function followBase(layers: Layers, index: number): boolean {
  const above = layers[index - 1] as LayerSpec
  const base = layers[index] as LayerSpec
  const reference = referenceOf(above)
  const { checkBelow, contentId } = formatOf(above)
  if (!checkBelow || !reference) return true
  const now = openChain(base.path, { format: base.format, describe: 'image' })
  try {
    const [below] = now.layers
    const { name } = reference
    rewriteReference(above.path, { name, format: base.format, below }, above.format)
    return contentId?.(below) !== contentId?.(base)
  } finally {
    closeChain(now)
  }
}

/**
 * Makes the image hold nothing, where its format can. A repair gives its space back later, when the image is not locked any more.
 */
async function makeEmpty([top]: Layers): Promise<boolean> {
  const { writing } = formatOf(top)
  if (!writing?.makeEmpty) return false
  const opened = openChain(top.path, { format: top.format, describe: 'image', access: 'write' })
  try {
    const size = BigInt64Array.of(BigInt(top.sizeBytes))
    await writing.makeEmpty(opened.layers[0], OPENED_FILES.writable(opened.layers[0], size))
  } finally {
    closeChain(opened)
  }
  return true
}
