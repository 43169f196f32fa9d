/**
 * Repairs the snapshot table (QEMU docs/interop/qcow2.rst, "Snapshots"): entries that are too short for version 3, impossible
 * sizes, and entries that cannot be read any more.
 */
import { printable } from '../../../errors.js'
import type { WritableStore } from '../../../io/store.js'
import { isTooLarge } from '../../disk-size.js'
import { Census } from '../check/census.js'
import type { CheckedImage } from '../check/image.js'
import type { Report } from '../check/report.js'
import type { SnapshotL1 } from '../check/snapshot-table.js'
import type { CellMemory } from '../check/window.js'
import { l2CoverageBytes } from '../header.js'
import { writeSnapshotTable } from '../header-update.js'
import { makeRow } from './room.js'

/** The size of an entry before its extra data. */
const ENTRY_BYTES = 40
/** The sizes of the VM state and of the disk, which version 3 requires. */
const EXTRA_BYTES = 16
const VM_STATE_BYTES_AT = 32
const EXTRA_BYTES_AT = 36
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
  image: CheckedImage,
  store: WritableStore,
  report: Report,
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
    const row = makeRow(store, census, table.length, isKnown && lost.length === 0)
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
const isLost = ({ l1At, l1Entries }: SnapshotL1, image: CheckedImage): boolean =>
  !image.namesL1Table(l1At, l1Entries) ||
  (l1Entries > 0 && (l1At === 0 || l1At >= image.store.sizeBytes))

const mustChange = ({ extraBytes, sizeBytes }: SnapshotL1, image: CheckedImage): boolean =>
  image.isIncomplete(extraBytes) || (sizeBytes !== undefined && isTooLarge(sizeBytes))

/** Returns the corrected entry with the padding after it. */
function completed(
  { entryAt, extraBytes, sizeBytes, l1Entries }: SnapshotL1,
  { header }: CheckedImage,
  old: Buffer,
): Buffer {
  const at = entryAt - header.snapshotsOffset
  const nameBytes = old.readUInt16BE(at + 12) + old.readUInt16BE(at + 14)
  const entry = Buffer.from(old.subarray(at, at + ENTRY_BYTES))
  const isShort = header.version === 3 && extraBytes < EXTRA_BYTES
  const extra = Buffer.alloc(isShort ? EXTRA_BYTES : extraBytes)
  if (isShort) {
    extra.writeBigUInt64BE(BigInt(entry.readUInt32BE(VM_STATE_BYTES_AT)), 0)
    extra.writeBigUInt64BE(BigInt(header.sizeBytes), 8)
  }
  // A part may be there: a VM state size without a disk size.
  const keptBytes = isShort ? extraBytes - (extraBytes % 8) : extraBytes
  old.copy(extra, 0, at + ENTRY_BYTES, at + ENTRY_BYTES + keptBytes)
  if (sizeBytes !== undefined && isTooLarge(sizeBytes)) {
    const mapped = l1Entries * l2CoverageBytes(header)
    extra.writeBigUInt64BE(BigInt(Math.min(header.sizeBytes, mapped)), 8)
  }
  entry.writeUInt32BE(extra.length, EXTRA_BYTES_AT)
  const names = old.subarray(at + ENTRY_BYTES + extraBytes).subarray(0, nameBytes)
  const padding = Buffer.alloc((8 - ((extra.length + nameBytes) % 8)) % 8)
  return Buffer.concat([entry, extra, names, padding])
}

/** Drops the part of the table that cannot be read; the entries before it stay where they are. */
function dropRest(image: CheckedImage, store: WritableStore, report: Report): void {
  const kept = image.snapshots.snapshots.length
  writeSnapshotTable(store, kept, kept > 0 ? image.header.snapshotsOffset : 0)
  store.sync()
  noteRest(image, report)
}

function noteRest({ header, snapshots }: CheckedImage, report: Report): void {
  const kept = snapshots.snapshots.length
  const found =
    snapshots.obstacle ?? header.defects.find(({ part }) => part === 'snapshots')?.message
  const which =
    kept === 0 ? 'all snapshots are dropped' : `snapshots after the first ${kept} are dropped`
  report.note('fix', header.snapshotsOffset + snapshots.bytes, () => `${which}: ${found}`)
}

function noteLost(
  { number, entryAt, l1At, l1Entries }: SnapshotL1,
  { header }: CheckedImage,
  old: Buffer,
  report: Report,
): void {
  const at = entryAt - header.snapshotsOffset
  const idAt = at + ENTRY_BYTES + old.readUInt32BE(at + EXTRA_BYTES_AT)
  const nameAt = idAt + old.readUInt16BE(at + 12)
  const name = printable(old.toString('utf8', nameAt, nameAt + old.readUInt16BE(at + 14)))
  report.note(
    'fix',
    entryAt,
    () =>
      `snapshot ${number}, "${name}", is dropped: no L1 table of ${l1Entries} entries can be at ${l1At}`,
  )
}
