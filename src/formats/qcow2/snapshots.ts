/** Reads the snapshot table (QEMU docs/interop/qcow2.rst, "Snapshots"). */
import { printable } from '../../errors.js'
import type { Store } from '../../io/store.js'
import { isTooLarge } from '../disk-size.js'
import type { InternalSnapshot } from '../format.js'
import { MAX_L1_BYTES, MAX_SNAPSHOT_EXTRA_BYTES, MAX_SNAPSHOT_TABLE_BYTES } from '../limits.js'
import { clusterBytes, type Qcow2Header } from './header.js'
import {
  decodeSnapshotEntry,
  nextSnapshotEntry,
  SNAPSHOT_FIXED_BYTES,
  type SnapshotEntry,
  snapshotLengths,
} from './snapshot-entry.js'
import { TableReader } from './table-reader.js'

/** `sizeBytes` is the header's where the entry is too old to contain it. */
export interface Qcow2Snapshot extends InternalSnapshot {
  readonly l1Offset: number
  readonly l1Entries: number
}

export interface FoundSnapshots {
  /** The snapshots that have a possible size and place. Reading one whose L1 table is lost is an error. */
  readonly snapshots: Qcow2Snapshot[]
  /** Descriptions of the damage, one clause each; only the first few if there are many. */
  readonly problems: string[]
}

/** The most snapshots whose damage is described one by one. */
const MAX_PROBLEMS = 8

/**
 * Reads the table in bounded steps. Leaves out a snapshot whose size or place is impossible, and all snapshots after an entry
 * that does not say where the next one begins.
 */
export function readSnapshots(store: Store, header: Qcow2Header): FoundSnapshots {
  const snapshots: Qcow2Snapshot[] = []
  const problems: string[] = []
  const { snapshotCount: count } = header
  const { obstacle } = walkSnapshotTable(store, header, ({ number, entry, problem }) => {
    const snapshot = snapshotOf(entry, header)
    const isShown = Number.isSafeInteger(snapshot.l1Offset) && !isTooLarge(snapshot.sizeBytes)
    if (isShown) snapshots.push(snapshot)
    if (problem === undefined || problems.length > MAX_PROBLEMS) return
    if (problems.length === MAX_PROBLEMS) problems.push('more of its snapshots are damaged')
    else {
      const name = printable(snapshot.name.toString('utf8'))
      const what = `its snapshot ${number} of ${count}, "${name}",`
      problems.push(`${what} ${isShown ? 'cannot be read' : 'is not shown'}: it ${problem}`)
    }
  })
  if (obstacle) {
    const { number, why } = obstacle
    problems.push(`${lostFrom(number, count)}: number ${number} ${why}`)
  }
  return { snapshots, problems }
}

const lostFrom = (number: number, count: number): string =>
  number === 1
    ? `its snapshots (${count}) are not shown`
    : `its snapshots from ${number} of ${count} on are not shown`

const snapshotOf = (entry: SnapshotEntry, header: Qcow2Header): Qcow2Snapshot => ({
  l1Offset: entry.l1Offset,
  l1Entries: entry.l1Entries,
  id: entry.id.toString('utf8'),
  name: Buffer.from(entry.name),
  dateSeconds: entry.dateSeconds,
  dateNanoseconds: entry.dateNanoseconds,
  guestNanoseconds: entry.guestNanoseconds,
  vmStateBytes: Number(entry.vmStateBytes),
  sizeBytes: entry.sizeBytes ?? header.sizeBytes,
  icount: entry.icount,
})

export interface FoundEntry {
  /** 1 for the first entry. */
  readonly number: number
  /** The place of the entry in the file. */
  readonly entryAt: number
  /** Its buffers are valid only during the visit. */
  readonly entry: SnapshotEntry
  readonly extraBytes: number
  /** All bytes of the entry; valid only during the visit. */
  readonly bytes: Buffer
  /** Why the snapshot cannot be read; undefined if it can. */
  readonly problem: string | undefined
}

export interface WalkedTable {
  /** The size of the table, to the end of the last entry that was visited. */
  readonly bytes: number
  /** The entry that is damaged so that nobody knows where the next one begins, and why. */
  readonly obstacle?: { readonly number: number; readonly why: string }
}

/** Calls `visit` for the entries of the table, in its order. Throws SystemError. */
export function walkSnapshotTable(
  store: Store,
  header: Qcow2Header,
  visit: (found: FoundEntry) => void,
): WalkedTable {
  const reader = new TableReader(store, header.snapshotsOffset)
  const isSuspect = header.defects.some(({ part }) => part === 'snapshots')
  let end = 0
  for (let number = 1; number <= header.snapshotCount; number++) {
    const start = nextSnapshotEntry(end)
    const broken = (why: string) => ({ bytes: end, obstacle: { number, why } })
    const fixed = reader.read(start, SNAPSHOT_FIXED_BYTES)
    if (fixed === undefined) return broken(CUT_OFF)
    if (fixed.every(byte => byte === 0)) return broken('is empty')
    const { extraBytes, entryBytes } = snapshotLengths(fixed)
    if (extraBytes > MAX_SNAPSHOT_EXTRA_BYTES)
      return broken(`has ${extraBytes} bytes of extra data`)
    const next = start + entryBytes
    if (next > MAX_SNAPSHOT_TABLE_BYTES) {
      return broken(`ends after more than ${MAX_SNAPSHOT_TABLE_BYTES} bytes of table`)
    }
    const bytes = reader.read(start, entryBytes)
    if (bytes === undefined) return broken(CUT_OFF)
    const entry = decodeSnapshotEntry(bytes)
    const problem = problemOf(entry, header, store.sizeBytes)
    // If the count is wrong, what follows the last entry is not an entry.
    if (isSuspect && problem !== undefined) return broken(problem)
    end = next
    visit({ number, entryAt: header.snapshotsOffset + start, entry, extraBytes, bytes, problem })
  }
  return { bytes: end }
}

const CUT_OFF = 'is cut off by the end of the file'

function problemOf(
  { l1Offset, l1Entries, sizeBytes = 0 }: SnapshotEntry,
  header: Qcow2Header,
  fileBytes: number,
): string | undefined {
  const table = `has its L1 table, of ${l1Entries} entries, at ${l1Offset}`
  const isEmpty = l1Entries === 0
  if (l1Offset % clusterBytes(header) !== 0) return `${table}, which is not aligned to a cluster`
  if (!isEmpty && (l1Offset === 0 || l1Offset >= fileBytes)) return `${table}, where none can be`
  if (l1Entries * 8 > MAX_L1_BYTES) return `${table}: more than ${MAX_L1_BYTES / 8}`
  return isTooLarge(sizeBytes) ? `has a disk of about ${sizeBytes} bytes` : undefined
}
