/** The bitmap directory (QEMU docs/interop/qcow2.rst, "Bitmaps"), as far as it describes bitmaps. */
import { bits64be, layout, u8, u16be, u32be } from '../../binary.js'
import { ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import { MAX_BITMAP_DIRECTORY_BYTES, MAX_BITMAPS } from '../limits.js'
import { AUTOCLEAR, type Qcow2Header } from './header.js'

const ENTRY = layout({
  tableOffset: bits64be,
  tableEntries: u32be,
  flags: u32be,
  type: u8,
  granularityBits: u8,
  nameBytes: u16be,
  extraBytes: u32be,
})
const IN_USE = 1
const AUTO = 2
const DIRTY_TRACKING = 1
const MIN_GRANULARITY_BITS = 9
const MAX_GRANULARITY_BITS = 31

export interface Qcow2Bitmap {
  /** The name's bytes. */
  readonly name: Buffer
  /** What one bit stands for, in bytes of the disk. */
  readonly granularityBytes: number
  /** A writer did not close it: what it says cannot be trusted. */
  readonly isInUse: boolean
  /** It records what is written. */
  readonly isAuto: boolean
}

/**
 * The bitmaps of an image; none where a program that does not know them wrote to it, for they are
 * void then. Throws ImageError for a directory that is damaged.
 */
export function readBitmaps(store: Store, header: Qcow2Header): Qcow2Bitmap[] {
  const { bitmaps: extension, autoclear } = header
  if (!extension || (autoclear & AUTOCLEAR.bitmaps) === 0n) return []
  const { count, directoryBytes, directoryOffset } = extension
  if (count > MAX_BITMAPS || directoryBytes > MAX_BITMAP_DIRECTORY_BYTES) {
    throw damage(store, `it claims ${count} bitmaps in ${directoryBytes} bytes`)
  }
  if (directoryOffset + directoryBytes > store.sizeBytes) {
    throw damage(
      store,
      `the bitmap directory at ${directoryOffset} lies beyond the end of the file`,
    )
  }
  const directory = Buffer.alloc(directoryBytes)
  const got = store.read(directory, 0, directoryBytes, directoryOffset)
  if (got < directoryBytes) throw damage(store, 'the bitmap directory is cut off')
  const bitmaps: Qcow2Bitmap[] = []
  for (let at = 0; bitmaps.length < count; ) {
    const { bitmap, end } = readEntry(directory, at)
    if (!bitmap) throw damage(store, `bitmap ${bitmaps.length + 1} of ${count} is damaged`)
    bitmaps.push(bitmap)
    at = Math.ceil(end / 8) * 8
  }
  return bitmaps
}

/** The entry at `at` and where it ends; no bitmap where it is cut off or makes no sense. */
function readEntry(directory: Buffer, at: number): { bitmap?: Qcow2Bitmap; end: number } {
  if (at + ENTRY.size > directory.length) return { end: at }
  const { flags, type, granularityBits, nameBytes, extraBytes } = ENTRY.decode(directory, at)
  const nameAt = at + ENTRY.size + extraBytes
  const end = nameAt + nameBytes
  const isSound =
    end <= directory.length &&
    type === DIRTY_TRACKING &&
    granularityBits >= MIN_GRANULARITY_BITS &&
    granularityBits <= MAX_GRANULARITY_BITS
  if (!isSound) return { end }
  const bitmap = {
    name: directory.subarray(nameAt, end),
    granularityBytes: 2 ** granularityBits,
    isInUse: (flags & IN_USE) !== 0,
    isAuto: (flags & AUTO) !== 0,
  }
  return { bitmap, end }
}

function damage(store: Store, message: string): ImageError {
  return new ImageError('CORRUPT', message, {
    path: store.path,
    hint: 'restore the image from a copy, or try qemu-img check on a copy',
  })
}
