/** Going over the bitmap directory (QEMU docs/interop/qcow2.rst, "Bitmaps"), as far as a check needs. */
import type { Store } from '../../../io/store.js'
import { MAX_BITMAP_DIRECTORY_BYTES, MAX_BITMAPS } from '../../limits.js'
import { AUTOCLEAR, type Qcow2Header } from '../header.js'

/** Of an entry before its extra data and its name. */
const ENTRY_BYTES = 24
const IN_USE = 1
const KNOWN_FLAGS = 7
const DIRTY_TRACKING = 1
const MIN_GRANULARITY_BITS = 9
const MAX_GRANULARITY_BITS = 31
const MAX_NAME_BYTES = 1023
/** QEMU's limit, block/qcow2-bitmap.c. */
const MAX_TABLE_ENTRIES = 0x8000000

export interface BitmapTable {
  /** 1 for the first entry. */
  readonly number: number
  /** Where the directory entry is in the file. */
  readonly entryAt: number
  readonly tableAt: number
  readonly tableEntries: number
  /** A writer did not close it. */
  readonly isInUse: boolean
}

export interface BitmapDirectory {
  readonly at: number
  readonly bytes: number
  readonly tables: readonly BitmapTable[]
  /** Why the rest of it cannot be read. */
  readonly obstacle?: string
}

/** Undefined where there are none, or where they are void and their clusters are leaks. */
export function readBitmapDirectory(
  store: Store,
  header: Qcow2Header,
): BitmapDirectory | undefined {
  const { bitmaps, autoclear } = header
  if (!bitmaps || (autoclear & AUTOCLEAR.bitmaps) === 0n || bitmaps.count === 0) return undefined
  const { count, directoryOffset: at, directoryBytes: bytes } = bitmaps
  const tables: BitmapTable[] = []
  const broken = (obstacle: string) => ({ at, bytes, tables, obstacle })
  if (count > MAX_BITMAPS || bytes > MAX_BITMAP_DIRECTORY_BYTES) {
    return broken(`the bitmap directory claims ${count} bitmaps in ${bytes} bytes`)
  }
  if (at % 2 ** header.clusterBits !== 0) return broken('the bitmap directory is not aligned')
  const entry = Buffer.alloc(ENTRY_BYTES)
  let start = 0
  for (let number = 1; number <= count; number++) {
    const damaged = () => broken(`bitmap ${number} of ${count} is damaged in the directory`)
    const entryAt = at + start
    if (start + ENTRY_BYTES > bytes) return damaged()
    if (store.read(entry, 0, ENTRY_BYTES, entryAt) < ENTRY_BYTES) return damaged()
    const tableAt = Number(entry.readBigUInt64BE(0))
    const tableEntries = entry.readUInt32BE(8)
    const flags = entry.readUInt32BE(12)
    const granularityBits = entry.readUInt8(17)
    const nameBytes = entry.readUInt16BE(18)
    const end = start + ENTRY_BYTES + entry.readUInt32BE(20) + nameBytes
    const isSound =
      end <= bytes &&
      nameBytes <= MAX_NAME_BYTES &&
      (flags & ~KNOWN_FLAGS) === 0 &&
      entry.readUInt8(16) === DIRTY_TRACKING &&
      granularityBits >= MIN_GRANULARITY_BITS &&
      granularityBits <= MAX_GRANULARITY_BITS &&
      tableAt > 0 &&
      tableAt % 2 ** header.clusterBits === 0 &&
      tableEntries <= MAX_TABLE_ENTRIES
    if (!isSound) return damaged()
    const isInUse = (flags & IN_USE) !== 0
    tables.push({ number, entryAt, tableAt, tableEntries, isInUse })
    start = Math.ceil(end / 8) * 8
  }
  return { at, bytes, tables }
}
