/** Reads the snapshot table (QEMU docs/interop/qcow2.rst, "Snapshots"), as far as a check needs it. */
import type { Store } from '../../../io/store.js'
import { MAX_SNAPSHOT_EXTRA_BYTES, MAX_SNAPSHOT_TABLE_BYTES } from '../../limits.js'
import type { Qcow2Header } from '../header.js'
import { problemOf } from '../snapshots.js'

/** The size of an entry before its extra data, its id and its name. */
const ENTRY_BYTES = 40
/** The place of the disk's size in the extra data. */
const SIZE_AT = 8

export interface SnapshotL1 {
  /** 1 for the first entry. */
  readonly number: number
  /** The place of the entry in the file. */
  readonly entryAt: number
  /** The place of its L1 table in the file; rounded above 2^53. */
  readonly l1At: number
  readonly l1Entries: number
  readonly extraBytes: number
  /** The disk's size; undefined if the entry is too old to contain it. */
  readonly sizeBytes: number | undefined
  /** Why the snapshot cannot be read. */
  readonly problem: string | undefined
}

export interface SnapshotTable {
  readonly snapshots: readonly SnapshotL1[]
  /** The size of the table, to the end of its last entry. */
  readonly bytes: number
  /** Why the rest of it cannot be read. */
  readonly obstacle?: string
}

export function readSnapshotTable(store: Store, header: Qcow2Header): SnapshotTable {
  const snapshots: SnapshotL1[] = []
  const entry = Buffer.alloc(ENTRY_BYTES)
  const size = Buffer.alloc(8)
  const isSuspect = header.defects.some(({ part }) => part === 'snapshots')
  let end = 0
  for (let i = 0; i < header.snapshotCount; i++) {
    const start = Math.ceil(end / 8) * 8
    const entryAt = header.snapshotsOffset + start
    const broken = (why: string) => ({
      snapshots,
      bytes: end,
      obstacle: `snapshot ${i + 1} ${why}`,
    })
    if (store.read(entry, 0, ENTRY_BYTES, entryAt) < ENTRY_BYTES) {
      return broken('is cut off by the end of the file')
    }
    if (entry.every(byte => byte === 0)) return broken('has an empty entry')
    const extraBytes = entry.readUInt32BE(36)
    if (extraBytes > MAX_SNAPSHOT_EXTRA_BYTES)
      return broken(`has ${extraBytes} bytes of extra data`)
    const next = start + ENTRY_BYTES + extraBytes + entry.readUInt16BE(12) + entry.readUInt16BE(14)
    if (next > MAX_SNAPSHOT_TABLE_BYTES) {
      return broken(`ends after more than ${MAX_SNAPSHOT_TABLE_BYTES} bytes of table`)
    }
    if (header.snapshotsOffset + next > store.sizeBytes) {
      return broken('is cut off by the end of the file')
    }
    const hasSize = extraBytes >= SIZE_AT + 8
    if (hasSize) store.read(size, 0, 8, entryAt + ENTRY_BYTES + SIZE_AT)
    const found = {
      l1Offset: Number(entry.readBigUInt64BE(0)),
      l1Entries: entry.readUInt32BE(8),
      sizeBytes: hasSize ? Number(size.readBigUInt64BE(0)) : header.sizeBytes,
    }
    const problem = problemOf(found, header, store.sizeBytes)
    // If the count is wrong, what follows the last entry is not an entry.
    if (isSuspect && problem !== undefined) return broken(problem)
    end = next
    snapshots.push({
      number: i + 1,
      entryAt,
      l1At: found.l1Offset,
      l1Entries: found.l1Entries,
      extraBytes,
      sizeBytes: hasSize ? found.sizeBytes : undefined,
      problem,
    })
  }
  return { snapshots, bytes: end }
}
