/** Reads the snapshot table (QEMU docs/interop/qcow2.rst, "Snapshots"), as far as a check needs it. */
import type { Store } from '../../../io/store.js'
import type { Qcow2Header } from '../header.js'
import { walkSnapshotTable } from '../snapshots.js'

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
  const { bytes, obstacle } = walkSnapshotTable(
    store,
    header,
    ({ number, entryAt, entry, extraBytes, problem }) => {
      const { l1Offset: l1At, l1Entries, sizeBytes } = entry
      snapshots.push({ number, entryAt, l1At, l1Entries, extraBytes, sizeBytes, problem })
    },
  )
  if (!obstacle) return { snapshots, bytes }
  return { snapshots, bytes, obstacle: `snapshot ${obstacle.number} ${obstacle.why}` }
}
