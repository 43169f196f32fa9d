/** Reads the bitmap directory (QEMU docs/interop/qcow2.rst, "Bitmaps"), as far as a check needs it. */
import type { Store } from '../../../io/store.js'
import { MAX_BITMAP_DIRECTORY_BYTES, MAX_BITMAPS } from '../../limits.js'
import { areBitmapsValid, BITMAP_FLAG, bitmapEntries, TableEntryCount } from '../bitmaps.js'
import { clusterBytes, type Qcow2Header } from '../header.js'

const KNOWN_FLAGS = Object.values(BITMAP_FLAG).reduce((all, flag) => all | flag, 0)
const MAX_NAME_BYTES = 1023

export interface BitmapTable {
  /** 1 for the first entry. */
  readonly number: number
  /** The place of the directory entry in the file. */
  readonly entryAt: number
  readonly tableAt: number
  readonly tableEntries: number
  /** Whether a writer did not close it. */
  readonly isInUse: boolean
}

export interface BitmapDirectory {
  readonly at: number
  readonly bytes: number
  readonly tables: readonly BitmapTable[]
  /** Why the rest of it cannot be read. */
  readonly obstacle?: string
}

/** Returns undefined if there are no bitmaps, or if they are void and their clusters are leaks. */
export function readBitmapDirectory(
  store: Store,
  header: Qcow2Header,
): BitmapDirectory | undefined {
  const { bitmaps } = header
  if (!bitmaps || !areBitmapsValid(header) || bitmaps.count === 0) return undefined
  const { count, directoryOffset: at, directoryBytes: bytes } = bitmaps
  const tables: BitmapTable[] = []
  const broken = (obstacle: string) => ({ at, bytes, tables, obstacle })
  if (count > MAX_BITMAPS || bytes > MAX_BITMAP_DIRECTORY_BYTES) {
    return broken(`the bitmap directory claims ${count} bitmaps in ${bytes} bytes`)
  }
  if (at % clusterBytes(header) !== 0) return broken('the bitmap directory is not aligned')
  const cluster = clusterBytes(header)
  const entries = new TableEntryCount(cluster)
  for (const entry of bitmapEntries(store, bitmaps)) {
    const number = tables.length + 1
    const tableAt = Number(entry?.tableOffset)
    const isSound =
      entry !== undefined &&
      entry.name.length <= MAX_NAME_BYTES &&
      (entry.flags & ~KNOWN_FLAGS) === 0 &&
      tableAt > 0 &&
      tableAt % cluster === 0 &&
      entries.add(entry.tableEntries)
    if (!isSound) return broken(`bitmap ${number} of ${count} is damaged in the directory`)
    const { at: entryAt, tableEntries, flags } = entry
    const isInUse = (flags & BITMAP_FLAG.inUse) !== 0
    tables.push({ number, entryAt, tableAt, tableEntries, isInUse })
  }
  return { at, bytes, tables }
}
