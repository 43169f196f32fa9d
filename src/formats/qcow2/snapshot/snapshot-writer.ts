/** Takes, deletes and goes back to snapshots within a qcow2 image (QEMU docs/interop/qcow2.rst, "Snapshots"). */
import { ImageError } from '../../../errors.js'
import type { WritableStore } from '../../../io/store.js'
import type { NewSnapshot, SnapshotWriter } from '../../snapshot-writer.js'
import { AUTOCLEAR, l2CoverageBytes, type Qcow2Header } from '../header.js'
import { withoutFlags } from './active-tables.js'
import { Change } from './change.js'
import { type Entry, newEntry, renamedEntry, requireRoom } from './entries.js'
import { showsTheSame } from './same-disk.js'
import type { L1Place } from './references.js'

export const qcow2SnapshotWriter: SnapshotWriter = {
  create: (store, snapshot, options) =>
    Change.run(store, change => create(store, change, snapshot), options),
  delete: (store, indexes, options) => {
    if (indexes.length === 0) return
    Change.run(store, change => deleteAll(change, new Set(indexes)), options)
  },
  rename: (store, index, name, options) =>
    Change.run(store, change => rename(store, change, index, name), options),
  revert: (store, index, kept, options) =>
    Change.run(store, change => revert(store, change, index, kept), options),
}

/** The new snapshot and the disk share all L2 tables. */
function create({ path }: WritableStore, change: Change, snapshot: NewSnapshot): void {
  const { header, active, snapshots } = change
  const entryAt = (at: number) =>
    newEntry(snapshot, snapshots, { at, entries: active.entries }, header.sizeBytes)
  requireRoom([...snapshots, entryAt(0)], path)
  change.expectEntries(2 * active.entries)
  change.refer(active, 1)
  const l1 = change.makeActive(active, active.entries, 2)
  change.forget(active.at, active.entries * 8)
  const entry = entryAt(change.place(withoutFlags(l1)))
  const { sizeBytes, l1Entries } = header
  const l1Offset = change.place(l1) || header.l1Offset
  change.commit([...snapshots, entry], { sizeBytes, l1Entries, l1Offset })
}

function deleteAll(change: Change, indexes: ReadonlySet<number>): void {
  const { header, active, snapshots } = change
  const isDeleted = (_: Entry, index: number) => indexes.has(index)
  const deleted = snapshots.filter(isDeleted)
  change.expectEntries(deleted.reduce((sum, { entries }) => sum + entries, active.entries))
  for (const { at, entries } of deleted) {
    change.refer({ at, entries }, -1)
    change.forget(at, entries * 8)
  }
  // Flags change where the disk is now the only one to use a cluster.
  const l1 = change.makeActive(active, active.entries)
  change.forget(active.at, active.entries * 8)
  const kept = snapshots.filter((entry, index) => !isDeleted(entry, index))
  const { sizeBytes, l1Entries } = header
  const l1Offset = change.place(l1) || header.l1Offset
  change.commit(kept, { sizeBytes, l1Entries, l1Offset })
}

/** Only the table of snapshots changes. */
function rename({ path }: WritableStore, change: Change, index: number, name: Buffer): void {
  const { header, snapshots } = change
  const renamed = snapshots.map((entry, i) => (i === index ? renamedEntry(entry, name) : entry))
  requireRoom(renamed, path)
  const { sizeBytes, l1Entries, l1Offset } = header
  change.commit(renamed, { sizeBytes, l1Entries, l1Offset })
}

/** The disk gets the tables of a snapshot. The VM state stays with the snapshot alone. */
function revert(
  store: WritableStore,
  change: Change,
  index: number,
  keep: NewSnapshot | undefined,
): { hasKept: boolean } {
  const { header, active, snapshots } = change
  const target = snapshots[index] as Entry
  requireRevertible(store, header, target)
  const source = diskPart(target, header)
  const isKept = (entry: Entry) =>
    entry.sizeBytes === header.sizeBytes &&
    showsTheSame(
      store,
      change.references,
      diskPart(entry, header),
      diskPart(activeOf(header), header),
    )
  const hasKept = keep !== undefined && !snapshots.some(isKept)
  const kept = hasKept ? [newEntry(keep, snapshots, active, header.sizeBytes)] : []
  requireRoom([...snapshots, ...kept], store.path)
  change.expectEntries((hasKept ? 0 : active.entries) + 2 * source.entries)
  if (!hasKept) change.refer(active, -1)
  change.refer(source, 1)
  const l1Entries = Math.max(source.entries, header.l1Entries)
  const l1 = change.makeActive(source, l1Entries)
  // The old table now belongs to the snapshot that keeps the old state.
  if (!hasKept) change.forget(active.at, active.entries * 8)
  const l1Offset = change.place(l1) || header.l1Offset
  change.commit([...snapshots, ...kept], { sizeBytes: target.sizeBytes, l1Entries, l1Offset })
  return { hasKept }
}

const activeOf = ({ l1Offset, l1Entries, sizeBytes }: Qcow2Header) => ({
  at: l1Offset,
  entries: l1Entries,
  sizeBytes,
})

/** Returns the entries of an L1 table that map the disk: a VM state follows. */
const diskPart = (
  { at, entries, sizeBytes }: L1Place & { readonly sizeBytes: number },
  header: Qcow2Header,
): L1Place => ({
  at,
  entries: Math.min(entries, Math.ceil(sizeBytes / l2CoverageBytes(header))),
})

function requireRevertible(
  { path }: WritableStore,
  header: Qcow2Header,
  { entries, sizeBytes }: Entry,
): void {
  if (entries * l2CoverageBytes(header) < sizeBytes) {
    throw new ImageError('CORRUPT', 'the tables of the snapshot do not cover its disk', { path })
  }
  const { bitmaps, autoclear } = header
  if (bitmaps === undefined || (autoclear & AUTOCLEAR.bitmaps) === 0n) return
  const what = 'it has persistent bitmaps, which would not show what the revert changes'
  throw new ImageError('UNSUPPORTED', what, {
    path,
    hint: 'remove them first with qemu-img bitmap --remove',
  })
}
