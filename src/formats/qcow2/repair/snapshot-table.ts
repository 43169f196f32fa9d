/**
 * Repairs the snapshot table (QEMU docs/interop/qcow2.rst, "Snapshots"): entries that are too short for version 3, impossible
 * sizes, and entries that cannot be read any more.
 */
import { printable } from '../../../errors.js'
import type { WritableStore } from '../../../io/store.js'
import { isTooLarge } from '../../disk-size.js'
import { Census } from '../check/census.js'
import type { Qcow2Structure } from '../check/structure.js'
import type { Qcow2Report } from '../check/report.js'
import type { SnapshotL1 } from '../check/snapshot-table.js'
import type { CellMemory } from '../check/window.js'
import { l2CoverageBytes } from '../header.js'
import { writeSnapshotTable } from '../header-update.js'
import { decodeSnapshotEntry, encodeSnapshotEntry } from '../snapshot-entry.js'
import { allocateRow } from './refcount-places.js'

/** The table is held in memory, so a longer one stays as it is. */
const MAX_TABLE_BYTES = 4 * 2 ** 20

/**
 * Drops the entries of lost snapshots, and completes the others. If an entry lacks the disk's size or has an impossible one, it
 * gets the current size, as readers assume. A changed table is written to a new place. Afterwards the caller must correct the
 * counts of both tables.
 *
 * @returns whether snapshots were dropped; nothing names their clusters any more
 */
export function repairSnapshotTable(
  image: Qcow2Structure,
  store: WritableStore,
  report: Qcow2Report,
  memory: CellMemory,
  isKnown: boolean,
): boolean {
  const { header, snapshots } = image
  const { snapshotsOffset } = header
  const lost = snapshots.snapshots.filter(one => isLost(one, image))
  const kept = snapshots.snapshots.filter(one => !isLost(one, image))
  const isCut =
    snapshots.obstacle !== undefined || header.defects.some(({ part }) => part === 'snapshots')
  const changed = kept.filter(one => mustChange(one, image))
  if (lost.length === 0 && changed.length === 0) {
    if (isCut) dropRest(image, store, report)
    return isCut
  }
  const stays = (why: string) => {
    report.note('error', snapshotsOffset, () => `the snapshot table stays as it is: ${why}`)
    return isCut
  }
  if (snapshots.bytes > MAX_TABLE_BYTES) return stays('it is too long to be repaired')

  const old = Buffer.alloc(snapshots.bytes)
  store.read(old, 0, old.length, snapshotsOffset)
  const table = Buffer.concat(kept.map(one => completed(one, image, old)))
  let tableAt = 0
  if (table.length > 0) {
    const census = new Census(image, memory)
    census.run(undefined, () => {})
    const row = allocateRow(store, census, table.length, isKnown && lost.length === 0)
    if (row === undefined) return stays('there is no room for a new one')
    tableAt = row * image.clusterBytes
    store.write(table, 0, table.length, tableAt)
    store.sync()
  }
  writeSnapshotTable(store, kept.length, tableAt)
  store.sync()
  if (isCut) noteRest(image, report)
  for (const one of lost) noteLost(one, image, old, report)
  for (const { number, entryAt, sizeBytes } of changed) {
    if (sizeBytes === undefined || !isTooLarge(sizeBytes)) continue
    report.note('fix', entryAt, () => `snapshot ${number} gets the current size of the disk`)
  }
  if (tableAt > 0) report.note('fix', tableAt, () => 'a new snapshot table lies here')
  return isCut || lost.length > 0
}

/** Reports whether nothing of a snapshot can be found. */
const isLost = ({ l1At, l1Entries }: SnapshotL1, image: Qcow2Structure): boolean =>
  !image.namesL1Table(l1At, l1Entries) ||
  (l1Entries > 0 && (l1At === 0 || l1At >= image.store.sizeBytes))

const mustChange = ({ extraBytes, sizeBytes }: SnapshotL1, image: Qcow2Structure): boolean =>
  image.isIncomplete(extraBytes) || (sizeBytes !== undefined && isTooLarge(sizeBytes))

/** Returns the corrected entry with the padding after it. */
function completed(
  { entryAt, l1Entries }: SnapshotL1,
  { header }: Qcow2Structure,
  old: Buffer,
): Buffer {
  const entry = decodeSnapshotEntry(old, entryAt - header.snapshotsOffset)
  const { l1Offset, sizeBytes = header.version === 3 ? header.sizeBytes : undefined } = entry
  const mapped = l1Entries * l2CoverageBytes(header)
  const isImpossible = sizeBytes !== undefined && isTooLarge(sizeBytes)
  return encodeSnapshotEntry({
    ...entry,
    // A table without entries may have been said to be past the end of any file.
    l1Offset: Number.isSafeInteger(l1Offset) ? l1Offset : 0,
    sizeBytes: isImpossible ? Math.min(header.sizeBytes, mapped) : sizeBytes,
  })
}

/** Drops the part of the table that cannot be read; the entries before it stay where they are. */
function dropRest(image: Qcow2Structure, store: WritableStore, report: Qcow2Report): void {
  const kept = image.snapshots.snapshots.length
  writeSnapshotTable(store, kept, kept > 0 ? image.header.snapshotsOffset : 0)
  store.sync()
  noteRest(image, report)
}

function noteRest({ header, snapshots }: Qcow2Structure, report: Qcow2Report): void {
  const kept = snapshots.snapshots.length
  const found =
    snapshots.obstacle ?? header.defects.find(({ part }) => part === 'snapshots')?.message
  const which =
    kept === 0 ? 'all snapshots are dropped' : `snapshots after the first ${kept} are dropped`
  report.note('fix', header.snapshotsOffset + snapshots.bytes, () => `${which}: ${found}`)
}

function noteLost(
  { number, entryAt, l1At, l1Entries }: SnapshotL1,
  { header }: Qcow2Structure,
  old: Buffer,
  report: Qcow2Report,
): void {
  const at = entryAt - header.snapshotsOffset
  const name = printable(decodeSnapshotEntry(old, at).name.toString('utf8'))
  report.note(
    'fix',
    entryAt,
    () =>
      `snapshot ${number}, "${name}", is dropped: no L1 table of ${l1Entries} entries can be at ${l1At}`,
  )
}
