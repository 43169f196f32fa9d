/** Going over the snapshot table (QEMU docs/interop/qcow2.rst, "Snapshots"), as far as a check needs. */
import type { Store } from '../../../io/store.js'
import { MAX_SNAPSHOT_EXTRA_BYTES, MAX_SNAPSHOT_TABLE_BYTES } from '../../limits.js'
import type { Qcow2Header } from '../header.js'

/** Of an entry before its extra data, its id and its name. */
const ENTRY_BYTES = 40

export interface SnapshotL1 {
  /** 1 for the first entry. */
  readonly number: number
  /** Where the entry is in the file. */
  readonly entryAt: number
  /** Where its L1 table is in the file; rounded where it has more than 53 bits. */
  readonly l1At: number
  readonly l1Entries: number
  readonly extraBytes: number
}

export interface SnapshotTable {
  readonly snapshots: readonly SnapshotL1[]
  /** Bytes of the table, to the end of its last entry. */
  readonly bytes: number
  /** Why the rest of it cannot be read. */
  readonly obstacle?: string
}

export function readSnapshotTable(store: Store, header: Qcow2Header): SnapshotTable {
  const snapshots: SnapshotL1[] = []
  const entry = Buffer.alloc(ENTRY_BYTES)
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
    const extraBytes = entry.readUInt32BE(36)
    if (extraBytes > MAX_SNAPSHOT_EXTRA_BYTES)
      return broken(`has ${extraBytes} bytes of extra data`)
    end = start + ENTRY_BYTES + extraBytes + entry.readUInt16BE(12) + entry.readUInt16BE(14)
    if (end > MAX_SNAPSHOT_TABLE_BYTES) {
      return broken(`ends behind ${MAX_SNAPSHOT_TABLE_BYTES} bytes of table`)
    }
    if (header.snapshotsOffset + end > store.sizeBytes) {
      return broken('is cut off by the end of the file')
    }
    snapshots.push({
      number: i + 1,
      entryAt,
      l1At: Number(entry.readBigUInt64BE(0)),
      l1Entries: entry.readUInt32BE(8),
      extraBytes,
    })
  }
  return { snapshots, bytes: end }
}
