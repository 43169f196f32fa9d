/** The entries of the snapshot table while it is written anew. Those that stay keep their bytes, unknown extra data included. */
import { ImageError } from '../../../errors.js'
import type { Store } from '../../../io/store.js'
import type { NewSnapshot } from '../../snapshot-writer.js'
import { MAX_SNAPSHOT_TABLE_BYTES, MAX_SNAPSHOTS } from '../../limits.js'
import { SnapshotLimit } from '../../snapshot-limit.js'
import { readSnapshotTable } from '../check/snapshot-table.js'
import type { Qcow2Header } from '../header.js'
import {
  decodeSnapshotEntry,
  encodeSnapshotEntry,
  renamedSnapshotEntry,
} from '../snapshot-entry.js'
import type { L1Place } from './references.js'

export interface Entry extends L1Place {
  /** The whole entry, with the padding after it. */
  readonly bytes: Buffer
  readonly id: string
  /** The size of the disk, in bytes. */
  readonly sizeBytes: number
}

/** Reads the whole table. Throws ImageError if it is damaged. */
export function readEntries(store: Store, header: Qcow2Header): Entry[] {
  if (header.snapshotCount === 0) return []
  const { snapshots, bytes, obstacle } = readSnapshotTable(store, header)
  const problem = obstacle ?? snapshots.find(one => one.problem !== undefined)?.problem
  if (problem !== undefined) {
    throw new ImageError('CORRUPT', `its snapshot table is damaged: a snapshot ${problem}`, {
      path: store.path,
      hint: 'repair a copy of it with vimgfs check --repair all',
    })
  }
  const table = Buffer.alloc(Math.ceil(bytes / 8) * 8)
  store.read(table, 0, bytes, header.snapshotsOffset)
  return snapshots.map(({ entryAt, l1At, l1Entries, sizeBytes = header.sizeBytes }, i) => {
    const start = entryAt - header.snapshotsOffset
    const next = snapshots[i + 1]
    const end = next ? next.entryAt - header.snapshotsOffset : table.length
    const entry = table.subarray(start, end)
    const id = decodeSnapshotEntry(entry).id.toString('latin1')
    return { bytes: entry, id, at: l1At, entries: l1Entries, sizeBytes }
  })
}

/** Returns the entry of a new snapshot whose L1 table is `l1`. */
export function newEntry(
  { name, dateSeconds, dateNanoseconds }: NewSnapshot,
  others: readonly Entry[],
  l1: L1Place,
  sizeBytes: number,
): Entry {
  const id = String(highestId(others) + 1n)
  const bytes = encodeSnapshotEntry({
    l1Offset: l1.at,
    l1Entries: l1.entries,
    id: Buffer.from(id),
    name,
    dateSeconds,
    dateNanoseconds,
    guestNanoseconds: 0n,
    vmStateBytes: 0n,
    sizeBytes,
    // As qemu-img writes it.
    icount: 0n,
    unknownExtra: Buffer.alloc(0),
  })
  return { ...l1, bytes, id, sizeBytes }
}

/** Returns the entry under another name. */
export const renamedEntry = (entry: Entry, name: Buffer): Entry => ({
  ...entry,
  bytes: renamedSnapshotEntry(entry.bytes, name),
})

/** Throws SnapshotLimit if the table of these entries would be too long. */
export function requireRoom(entries: readonly Entry[], path: string): void {
  const bytes = entries.reduce((sum, entry) => sum + entry.bytes.length, 0)
  if (entries.length <= MAX_SNAPSHOTS && bytes <= MAX_SNAPSHOT_TABLE_BYTES) return
  const what = `it has ${entries.length - 1} snapshots, and there is no room for more`
  throw new SnapshotLimit(what, { path, hint: 'delete one first' })
}

/** Returns the highest number with which an ID begins. */
function highestId(entries: readonly Entry[]): bigint {
  let highest = 0n
  for (const { id } of entries) {
    const [, digits = '0'] = /^\s*\+?([0-9]{1,20})/.exec(id) ?? []
    const number = BigInt(digits)
    if (number > highest && number < 2n ** 63n) highest = number
  }
  return highest
}
