/** Makes an image stand on another backing file. */
import fs from 'node:fs'
import path from 'node:path'
import { ImageError } from '../../errors.js'
import type { View } from '../../formats/driver.js'
import type { LayerSpec } from '../../formats/format.js'
import type { WritableDisk } from '../../formats/writable.js'
import { requireChangeable, rewriteReference } from './change-reference.js'
import { type Chain, closeChain } from '../opening/chain.js'
import { formatOfImage } from '../checking/check.js'
import { type AskPassphrase, lockChain, unlockChain } from '../opening/encryption.js'
import { readView, lookupAt } from '../reading/engine.js'
import { ViewSet } from '../reading/view-set.js'
import { layerOfFile } from '../layer.js'
import { SECTOR_BYTES } from '../../sector.js'
import { namingItsMount } from '../opening/mounted.js'
import { openChain } from '../opening/open-chain.js'
import { requireOwnFile } from '../opening/archive.js'
import { openWrittenSet, SINGLE_THREAD_CACHES } from '../writing/written-set.js'
import type { WritableView } from '../writing/write-engine.js'
import { areZeros } from '../writing/zeros.js'

export interface RebaseOptions {
  readonly format?: string | undefined
  /** The new backing file, as the image is to name it; relative to the image's folder. Undefined for none. */
  readonly backing: string | undefined
  readonly backingFormat?: string | undefined
  /** Whether to change the name only, although the disk may read differently then. */
  readonly isUnsafe?: boolean
  readonly allowPaths?: readonly string[]
  /** Whether to change an image that others need, or that has snapshots. */
  readonly force?: boolean
  readonly ask: AskPassphrase
  /** Called between pieces, in bytes of the disk. */
  readonly progress?: (doneBytes: number, totalBytes: number) => Promise<void>
}

export interface Rebased {
  /** Bytes of the disk that were copied into the image, zeros included. */
  readonly bytes: number
  readonly warnings: readonly string[]
}

const PIECE_BYTES = 2 ** 20

/**
 * Gives the image another backing file, or none. Where the old and the new one differ, the image first gets the old content, and
 * the name changes when that is on the disk: at every moment the disk reads as before. Throws ImageError, SystemError.
 */
export async function rebaseImage(name: string, options: RebaseOptions): Promise<Rebased> {
  try {
    return options.isUnsafe ? renameOnly(name, options) : await rebaseSafely(name, options)
  } catch (error) {
    throw namingItsMount(error)
  }
}

/** The locks of `opened` hold while its header is written through another descriptor of this process. */
function renameOnly(name: string, options: RebaseOptions): Rebased {
  const { format, allowPaths = [] } = options
  const access = { describe: 'image', access: 'write', takesLocks: true } as const
  const opened = openChain(name, { format, allowPaths, ...access })
  try {
    const [top] = opened.layers
    requireChangeable(top)
    const { backing } = options
    const below =
      backing === undefined || isMissing(top, options) ? undefined : openNew(top, backing, options)
    try {
      writeName(top, options, below)
      const warnings = below ? outsideWarning(top, below.layers[0]) : []
      return { bytes: 0, warnings: [...opened.warnings, ...warnings] }
    } finally {
      if (below) closeChain(below)
    }
  } finally {
    closeChain(opened)
  }
}

async function rebaseSafely(name: string, options: RebaseOptions): Promise<Rebased> {
  const { ask, allowPaths = [], force = false } = options
  const format = formatOfImage(name, options.format)
  // Its disk reads as before, which only children that know a content ID take for a change.
  const isForced = force || format.checkBelow === undefined
  const access = { format: format.name, allowPaths, access: 'write', takesLocks: true } as const
  const opened = openChain(name, { ...access, force: isForced })
  try {
    const [top] = opened.layers
    requireChangeable(top)
    requireNoSnapshots(opened)
    const below = options.backing === undefined ? undefined : openNew(top, options.backing, options)
    try {
      const chain = await unlockChain(opened, ask)
      const lower = below && (await unlockChain(below, ask))
      try {
        const copied = await copyDifferences(chain, lower, options)
        writeName(top, options, below)
        const warnings = below ? outsideWarning(top, below.layers[0]) : []
        return {
          bytes: copied.bytes,
          warnings: [
            ...chain.warnings,
            ...(lower?.warnings ?? []),
            ...copied.warnings,
            ...warnings,
          ],
        }
      } finally {
        lockChain(chain)
        if (lower) lockChain(lower)
      }
    } finally {
      if (below) closeChain(below)
    }
  } finally {
    closeChain(opened)
  }
}

/** Reports whether the new backing file is not there: if its format is stated, its name alone can be written. */
function isMissing(top: LayerSpec, { backing, backingFormat }: RebaseOptions): boolean {
  if (backing === undefined || backingFormat === undefined) return false
  return !fs.existsSync(path.resolve(path.dirname(top.path), backing))
}

/** Opens the new backing file with all that it stands on. If its bytes count, nobody may write it meanwhile. */
function openNew(top: LayerSpec, backing: string, options: RebaseOptions): Chain {
  const { backingFormat: format, allowPaths = [], isUnsafe = false } = options
  const file = path.resolve(path.dirname(top.path), backing)
  const chain = openChain(file, { format, allowPaths, takesLocks: false })
  try {
    requireOwnFile(chain.layers[0])
  } catch (error) {
    closeChain(chain)
    throw error
  }
  if (layerOfFile(chain.layers, top.path) < 0) {
    if (isUnsafe) return chain
    closeChain(chain)
    return openChain(file, { format, allowPaths, takesLocks: true })
  }
  closeChain(chain)
  throw new ImageError('REFUSED', 'it would stand on itself', {
    path: top.path,
    hint: 'name an image that does not need this one',
  })
}

function requireNoSnapshots({ layers, snapshots }: Chain): void {
  if (snapshots.length === 0) return
  throw new ImageError('REFUSED', 'it has snapshots, which read from the old backing file', {
    path: layers[0].path,
    hint: 'delete them first; -u changes the name only, for a backing file that was moved',
  })
}

/**
 * Makes the image hold the old content wherever it is unallocated and the two backing files differ. It stands on the old backing
 * file meanwhile: what a unit is filled up with is the old content, too, so an error at any place leaves the disk as it was.
 */
async function copyDifferences(
  old: Chain,
  lower: Chain | undefined,
  { progress }: RebaseOptions,
): Promise<Rebased> {
  const next = lower && new ViewSet(lower.layers, SINGLE_THREAD_CACHES).layerView(0)
  const { set, disk, warnings } = openWrittenSet(old.layers)
  let lost: readonly string[] = []
  let bytes = 0
  try {
    const view = set.layerView(0) as WritableView
    const { sizeBytes } = disk
    const pieceBytes = Math.max(PIECE_BYTES, view.driver.zeroUnitBytes)
    for (let offset = 0; offset < sizeBytes; ) {
      const { kind, length } = lookupAt(view.driver, offset, sizeBytes - offset)
      const toBorder = pieceBytes - (offset % pieceBytes)
      const piece = kind === 'parent' ? Math.min(length, toBorder) : length
      if (kind === 'parent') bytes += takeOver(view, next, disk, offset, piece)
      offset += piece
      await progress?.(offset, sizeBytes)
    }
  } finally {
    lost = disk.close()
  }
  return { bytes, warnings: [...warnings, ...lost] }
}

/** Takes over what differs of an unallocated piece. Returns how many bytes those are. */
function takeOver(
  view: WritableView,
  next: View | undefined,
  disk: WritableDisk,
  offset: number,
  length: number,
): number {
  const before = contentOf(view.parent, offset, length)
  const after = contentOf(next, offset, length)
  if (before.equals(after)) return 0
  const unit = Math.max(SECTOR_BYTES, view.driver.zeroUnitBytes)
  const kindOf = (at: number, end: number) => {
    if (before.subarray(at, end).equals(after.subarray(at, end))) return 'same'
    return areZeros(before, at, end - at) ? 'zeros' : 'data'
  }
  const endOf = (at: number) => Math.min(length, at + unit - ((offset + at) % unit))
  let bytes = 0
  for (let at = 0; at < length; ) {
    let end = endOf(at)
    const kind = kindOf(at, end)
    while (end < length && kindOf(end, endOf(end)) === kind) end = endOf(end)
    if (kind !== 'same') {
      disk.own(offset + at, end - at, kind === 'zeros')
      bytes += end - at
    }
    at = end
  }
  return bytes
}

function contentOf(view: View | undefined, offset: number, length: number): Buffer {
  const content = Buffer.alloc(length)
  if (view) readView(view, content, 0, length, offset)
  return content
}

function writeName(top: LayerSpec, options: RebaseOptions, below: Chain | undefined): void {
  const [layer] = below?.layers ?? []
  const { backing: name } = options
  const format = layer?.format ?? options.backingFormat
  const reference =
    name === undefined || format === undefined ? undefined : { name, format, below: layer }
  rewriteReference(top.path, reference, top.format)
}

/** A mount opens only files below the image's own folder by itself. */
function outsideWarning(top: LayerSpec, below: LayerSpec): string[] {
  const folder = fs.realpathSync(path.dirname(top.path))
  const inside = path.relative(folder, fs.realpathSync(below.path))
  if (!inside.startsWith('..') && !path.isAbsolute(inside)) return []
  const allowed = path.dirname(below.path)
  return [
    `${top.path}: its backing file is outside of its folder: reading it will need --allow-path ${allowed}`,
  ]
}
