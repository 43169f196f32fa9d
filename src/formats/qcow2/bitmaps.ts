/** The bitmap directory (QEMU docs/interop/qcow2.rst, "Bitmaps"), as far as it describes bitmaps. */
import { bits64be, layout, u8, u16be, u32be } from '../../binary.js'
import { ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import {
  MAX_BITMAP_CLUSTERS_BYTES,
  MAX_BITMAP_DIRECTORY_BYTES,
  MAX_BITMAP_TABLE_ENTRIES,
  MAX_BITMAPS,
} from '../limits.js'
import { AUTOCLEAR, clusterBytes, type Qcow2Header } from './header.js'
import type { BitmapsExtension } from './header-extensions.js'
import { TableReader } from './table-reader.js'

/** A directory entry; extra data and the name follow. */
export const BITMAP_ENTRY = layout({
  tableOffset: bits64be,
  tableEntries: u32be,
  flags: u32be,
  type: u8,
  granularityBits: u8,
  nameBytes: u16be,
  extraBytes: u32be,
})
export const BITMAP_FLAG = { inUse: 1, auto: 2, extraDataCompatible: 4 }
const DIRTY_TRACKING = 1
const MIN_GRANULARITY_BITS = 9
const MAX_GRANULARITY_BITS = 31

export interface Qcow2Bitmap {
  /** The name's bytes. */
  readonly name: Buffer
  /** The bytes of the disk that one bit stands for. */
  readonly granularityBytes: number
  /** Whether a writer did not close it: then it cannot be trusted. */
  readonly isInUse: boolean
  /** Whether it records writes. */
  readonly isAuto: boolean
}

/** A directory entry as it is in the file. */
export interface BitmapEntry {
  /** Its place in the file, a multiple of 8. */
  readonly at: number
  readonly name: Buffer
  /** The place of its table in the file; not checked. */
  readonly tableOffset: bigint
  readonly tableEntries: number
  /** Bits of BITMAP_FLAG, and perhaps unknown ones. */
  readonly flags: number
  /** A bit stands for 2^granularityBits bytes of the disk. */
  readonly granularityBits: number
  readonly extraBytes: number
}

/** Reports whether an entry has the only known type and a possible granularity. */
const isDirtyBitmap = (entry: { type: number; granularityBits: number }): boolean =>
  entry.type === DIRTY_TRACKING &&
  entry.granularityBits >= MIN_GRANULARITY_BITS &&
  entry.granularityBits <= MAX_GRANULARITY_BITS

/**
 * Counts the entries of bitmap tables, and reports whether there can be so many. Ask it before reading a table: a sparse
 * file has room for any number of entries.
 */
export class TableEntryCount {
  private total = 0

  constructor(private readonly clusterBytes: number) {}

  /** Reports whether a table of `entries` entries is possible, together with those that were counted before. */
  add(entries: number): boolean {
    this.total += entries
    return (
      entries * this.clusterBytes <= MAX_BITMAP_CLUSTERS_BYTES &&
      this.total <= MAX_BITMAP_TABLE_ENTRIES
    )
  }
}

/** Reports whether the image's bitmaps can be trusted, except those in use. */
export const areBitmapsValid = (header: Qcow2Header): boolean =>
  (header.autoclear & AUTOCLEAR.bitmaps) !== 0n

/**
 * Returns the bitmaps of an image; none if a program has written to it that does not know bitmaps, because that makes them
 * void. Throws ImageError if the directory is damaged.
 */
export function readBitmaps(store: Store, header: Qcow2Header): Qcow2Bitmap[] {
  if (!areBitmapsValid(header)) return []
  return readDirectory(store, header).map(({ name, granularityBits, flags }) => ({
    name,
    granularityBytes: 2 ** granularityBits,
    isInUse: (flags & BITMAP_FLAG.inUse) !== 0,
    isAuto: (flags & BITMAP_FLAG.auto) !== 0,
  }))
}

/** Returns the whole directory; empty if the header names none. Throws ImageError if it is damaged. */
export function readDirectory(store: Store, header: Qcow2Header): BitmapEntry[] {
  if (!header.bitmaps) return []
  const { count, directoryBytes, directoryOffset } = header.bitmaps
  if (count > MAX_BITMAPS || directoryBytes > MAX_BITMAP_DIRECTORY_BYTES) {
    throw damage(store, `it claims ${count} bitmaps in ${directoryBytes} bytes`)
  }
  if (directoryOffset === 0 || directoryOffset % clusterBytes(header) !== 0) {
    throw damage(
      store,
      `the bitmap directory at ${directoryOffset} does not begin with a cluster of its own`,
    )
  }
  if (directoryOffset + directoryBytes > store.sizeBytes) {
    throw damage(
      store,
      `the bitmap directory at ${directoryOffset} lies beyond the end of the file`,
    )
  }
  const entries: BitmapEntry[] = []
  const tables = new TableEntryCount(clusterBytes(header))
  for (const entry of bitmapEntries(store, header.bitmaps)) {
    const which = `bitmap ${entries.length + 1} of ${count}`
    if (!entry) throw damage(store, `${which} is damaged`)
    if (!tables.add(entry.tableEntries)) {
      const what = `the table of ${which} claims ${entry.tableEntries} entries`
      throw damage(store, `${what}, more than there can be`)
    }
    entries.push({ ...entry, name: Buffer.from(entry.name) })
  }
  return entries
}

/**
 * Yields the entries of a directory, whose size and number of bitmaps the caller has bounded. After an entry that is cut off, or
 * makes no sense, it yields undefined and ends. A name is valid until the next entry.
 */
export function* bitmapEntries(
  store: Store,
  { count, directoryOffset, directoryBytes }: BitmapsExtension,
): Generator<BitmapEntry | undefined> {
  const reader = new TableReader(store, directoryOffset)
  for (let number = 1, at = 0; number <= count; number++) {
    const fixed = at + BITMAP_ENTRY.size <= directoryBytes && reader.read(at, BITMAP_ENTRY.size)
    if (!fixed) return yield undefined
    const { type, nameBytes, ...fields } = BITMAP_ENTRY.decode(fixed)
    const nameAt = at + BITMAP_ENTRY.size + fields.extraBytes
    const end = nameAt + nameBytes
    const isSound =
      end <= directoryBytes && isDirtyBitmap({ type, granularityBits: fields.granularityBits })
    const name = isSound && reader.read(nameAt, nameBytes)
    if (!name) return yield undefined
    yield { ...fields, at: directoryOffset + at, name }
    at = Math.ceil(end / 8) * 8
  }
}

function damage(store: Store, message: string): ImageError {
  return new ImageError('CORRUPT', message, {
    path: store.path,
    hint: 'restore the image from a copy, or try vimgfs check --repair all on a copy',
  })
}
