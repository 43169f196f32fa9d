/** Changes the size of an image's disk, while nobody uses the image. */
import fs from 'node:fs'
import { ImageError, UsageError } from '../../errors.js'
import type { View } from '../../formats/driver.js'
import { fillZeros } from '../../formats/filling.js'
import { formatOf } from '../../formats/registry.js'
import type { FormatResizer, Preallocation, ResizedImage } from '../../formats/resizing.js'
import type { WritableDisk } from '../../formats/writable.js'
import type { FileSpec } from '../../io/file-spec.js'
import type { WritableStore } from '../../io/store.js'
import { SECTOR_BYTES } from '../../sector.js'
import { type Chain, closeChain } from '../opening/chain.js'
import { type AskPassphrase, lockChain, unlockChain } from '../opening/encryption.js'
import { nextData, nextHole } from '../reading/holes.js'
import { diskBytes, fileSpec } from '../layer.js'
import { unlessMounted } from '../opening/mounted.js'
import { openChain } from '../opening/open-chain.js'
import { OPENED_FILES } from '../opening/store-source.js'
import { openWrittenSet } from '../writing/written-set.js'
import { lookupAt } from '../reading/engine.js'

export interface ResizeOptions {
  readonly format?: string | undefined
  readonly allowPaths?: readonly string[]
  /** Returns the new size from the present one, in bytes. It is rounded up to whole sectors. */
  readonly sizeOf: (sizeBytes: number) => number
  /** Whether the disk may become smaller. */
  readonly shrinks?: boolean
  /** The part of the new range that is allocated. */
  readonly preallocation?: Preallocation
  /** Whether the version of the image may be raised. */
  readonly upgrades?: boolean
  /** Whether data may be cut off, and an image changed that others need. */
  readonly force?: boolean
  readonly ask: AskPassphrase
  /** Called between pieces, in bytes of the disk. */
  readonly progress?: (doneBytes: number, totalBytes: number) => Promise<void>
}

export interface Resized {
  readonly beforeBytes: number
  readonly afterBytes: number
  /** How much data was cut off. */
  readonly lostBytes: number
  readonly isUpgraded: boolean
  readonly warnings: readonly string[]
}

/** How much is allocated or looked at before the progress is reported. */
const STEP_BYTES = 64 * 2 ** 20

/**
 * Makes the disk of the image at `name` larger or smaller. After an error or a power cut it has the old size or the new one; if it
 * was to become smaller, what was to be cut off may read as zeros. Throws UsageError, ImageError, SystemError.
 */
export async function resizeImage(name: string, options: ResizeOptions): Promise<Resized> {
  const { isUpgraded, warnings } = await upgraded(name, options)
  const opened = open(name, options)
  try {
    const resizer = await resizerOf(opened, name)
    const beforeBytes = diskBytes(opened.layers[0])
    const afterBytes = wantedBytes(options, beforeBytes, name)
    const done = { beforeBytes, afterBytes, isUpgraded }
    if (afterBytes === beforeBytes) return { ...done, lostBytes: 0, warnings }
    resizer.check(opened.layers[0], afterBytes)
    const chain = await unlockChain(opened, options.ask)
    try {
      const all = [...warnings, ...chain.warnings]
      if (afterBytes > beforeBytes) {
        all.push(...(await grow(chain, resizer, beforeBytes, afterBytes, options)))
        return { ...done, lostBytes: 0, warnings: all }
      }
      const { lostBytes, warnings: more } = await shrink(
        chain,
        resizer,
        afterBytes,
        beforeBytes,
        options,
      )
      const lost = resizer.shrink(resizedImage(chain), afterBytes)
      return { ...done, lostBytes, warnings: [...all, ...more, ...lost] }
    } finally {
      lockChain(chain)
    }
  } finally {
    closeChain(opened)
  }
}

function open(name: string, { format, allowPaths = [], force = false }: ResizeOptions): Chain {
  return unlessMounted(() =>
    openChain(name, { format, allowPaths, force, access: 'write', takesLocks: true }),
  )
}

/** Raises the image's version, if the options allow it and its size could not change otherwise. */
async function upgraded(name: string, options: ResizeOptions) {
  if (!options.upgrades) return { isUpgraded: false, warnings: [] }
  const opened = open(name, options)
  try {
    const resizer = await resizerOf(opened, name)
    const isUpgraded = resizer.upgrade?.(resizedImage(opened)) === true
    return { isUpgraded, warnings: opened.warnings }
  } finally {
    closeChain(opened)
  }
}

async function resizerOf({ layers: [top] }: Chain, name: string): Promise<FormatResizer> {
  const { resizing } = formatOf(top)
  if (!resizing) {
    throw new ImageError('UNSUPPORTED', `the size of a ${top.format} disk does not change`, {
      path: name,
      hint: 'convert it to another format first: vimgfs convert',
    })
  }
  const resizer = await resizing.load()
  if (resizer.isPlain && fs.fstatSync(top.fd).isBlockDevice()) {
    throw new ImageError('UNSUPPORTED', 'this is a block device', {
      path: name,
      hint: 'resize it with the program that made it, such as lvresize',
    })
  }
  return resizer
}

function wantedBytes({ sizeOf, shrinks }: ResizeOptions, beforeBytes: number, name: string) {
  const wanted = Math.ceil(sizeOf(beforeBytes) / SECTOR_BYTES) * SECTOR_BYTES
  if (!Number.isSafeInteger(wanted) || wanted < 0) {
    throw new UsageError(`the disk has ${beforeBytes} bytes, and cannot have ${wanted}`)
  }
  if (wanted < beforeBytes && !shrinks) {
    const what = `the disk has ${beforeBytes} bytes, and ${wanted} are less`
    throw new ImageError('REFUSED', what, {
      path: name,
      hint: 'to cut its end off, give --shrink; shrink partitions and file systems in it before',
    })
  }
  return wanted
}

/** Returns warnings. */
async function grow(
  chain: Chain,
  resizer: FormatResizer,
  beforeBytes: number,
  afterBytes: number,
  { preallocation: asked = 'off', progress }: ResizeOptions,
): Promise<readonly string[]> {
  const { layers } = chain
  const [top] = layers
  const { preallocations } = resizer
  if (!preallocations.includes(asked)) {
    const what = `${top.format} has no preallocation=${asked}`
    throw new UsageError(`${what}, but ${preallocations.join(', ')}`)
  }
  const preallocation = asked === 'off' ? (resizer.leastPreallocation?.(top) ?? 'off') : asked
  if (resizer.grow) {
    resizer.grow(resizedImage(chain), afterBytes)
    return []
  }
  const { set, disk, warnings } = openWrittenSet(layers)
  let lost: readonly string[] = []
  try {
    disk.grow(afterBytes)
    if (preallocation !== 'off') {
      const view = set.layerView(0)
      for (let offset = beforeBytes; offset < afterBytes; offset += STEP_BYTES) {
        const bytes = Math.min(STEP_BYTES, afterBytes - offset)
        allocate(disk, view, offset, bytes, preallocation)
        await progress?.(offset + bytes - beforeBytes, afterBytes - beforeBytes)
      }
      disk.flush()
    }
  } finally {
    lost = disk.close()
  }
  return [...warnings, ...lost]
}

/** Allocates a range that reads as zeros. */
function allocate(
  disk: WritableDisk,
  view: View,
  offset: number,
  length: number,
  mode: Preallocation,
): void {
  disk.reserve(offset, length)
  if (mode === 'falloc') return
  for (let done = 0; done < length; ) {
    const extent = lookupAt(view.driver, offset + done, length - done)
    if (extent.kind === 'data') {
      const store = extent.store as WritableStore
      if (mode === 'full') fillZeros(store, extent.at, extent.length)
      // A store that encrypts refuses, since a hole does not decrypt to zeros.
      else store.punch(extent.at, extent.length)
    }
    done += extent.length
  }
}

/** Makes what will be cut off read as zeros. Throws ImageError if it has data that must not be lost. */
async function shrink(
  { layers }: Chain,
  { isPlain }: FormatResizer,
  afterBytes: number,
  beforeBytes: number,
  { force = false, progress }: ResizeOptions,
) {
  const [top] = layers
  const { set, disk, warnings } = openWrittenSet(layers)
  let lost: readonly string[] = []
  let lostBytes = 0
  try {
    lostBytes = dataBytes(set.layerView(0), afterBytes, beforeBytes)
    if (lostBytes > 0 && !force) {
      const what = `${lostBytes} bytes of data lie past the new end`
      throw new ImageError('REFUSED', what, {
        path: top.path,
        hint: 'look what they are, or cut them off with --force',
      })
    }
    // From the end on: what remains after an error is the beginning, as after a shorter cut.
    for (let end = beforeBytes; end > afterBytes && !isPlain; ) {
      const start = Math.max(afterBytes, end - STEP_BYTES)
      disk.zero(start, end - start)
      end = start
      await progress?.(beforeBytes - end, beforeBytes - afterBytes)
    }
    disk.flush()
  } finally {
    lost = disk.close()
  }
  return { lostBytes, warnings: [...warnings, ...lost] }
}

function dataBytes(view: View, from: number, to: number): number {
  let bytes = 0
  for (let at = from; at < to; ) {
    const start = nextData(view, at)
    if (start < 0) break
    const end = nextHole(view, start)
    bytes += end - start
    at = end
  }
  return bytes
}

/** The files as they are now. */
function resizedImage({ layers: [layer] }: Chain): ResizedImage {
  const storeOf = (file: FileSpec) => {
    const stat = fs.fstatSync(file.fd, { bigint: true })
    const { sizeBytes } = fileSpec({ path: file.path, fd: file.fd, stat })
    return OPENED_FILES.writable(file, BigInt64Array.of(BigInt(sizeBytes)))
  }
  return { layer, store: storeOf(layer), storeOf }
}
