/** Snapshots whose entries are too short for version 3 (QEMU docs/interop/qcow2.rst, "Snapshots"). */
import type { WritableStore } from '../../../io/store.js'
import { Census } from '../check/census.js'
import type { CheckedImage } from '../check/image.js'
import type { Report } from '../check/report.js'
import type { CellMemory } from '../check/window.js'
import { writeSnapshotTable } from '../header-update.js'
import { makeRow } from './room.js'

/** Of an entry before its extra data. */
const ENTRY_BYTES = 40
/** The VM state's size and the disk's, which version 3 wants. */
const EXTRA_BYTES = 16
const VM_STATE_BYTES_AT = 32
const EXTRA_BYTES_AT = 36
/** A table that is longer stays as it is: it is held in memory. */
const MAX_TABLE_BYTES = 4 * 2 ** 20

/**
 * Writes a table with complete entries to a new place and makes it the image's. What the
 * entries did not say is the disk's size as it is now, as readers take it. The counts of both tables are
 * for the caller to make right, afterwards.
 */
export function completeSnapshotTable(
  image: CheckedImage,
  store: WritableStore,
  report: Report,
  memory: CellMemory,
  isKnown: boolean,
): void {
  const { header, snapshots, clusterBytes } = image
  const short = snapshots.snapshots.filter(({ extraBytes }) => image.isIncomplete(extraBytes))
  if (short.length === 0) return
  if (snapshots.bytes > MAX_TABLE_BYTES) {
    report.note(
      'error',
      header.snapshotsOffset,
      () => 'the snapshot table is too long to be repaired',
    )
    return
  }
  const old = Buffer.alloc(snapshots.bytes)
  store.read(old, 0, old.length, header.snapshotsOffset)
  const parts = snapshots.snapshots.map(({ entryAt, extraBytes }) => {
    const at = entryAt - header.snapshotsOffset
    const nameBytes = old.readUInt16BE(at + 12) + old.readUInt16BE(at + 14)
    const entry = Buffer.from(old.subarray(at, at + ENTRY_BYTES))
    const extra = Buffer.alloc(Math.max(EXTRA_BYTES, extraBytes))
    extra.writeBigUInt64BE(BigInt(entry.readUInt32BE(VM_STATE_BYTES_AT)), 0)
    extra.writeBigUInt64BE(BigInt(header.sizeBytes), 8)
    // Some of it may be there: a VM state size without a disk size.
    const kept = extraBytes >= EXTRA_BYTES ? extraBytes : extraBytes - (extraBytes % 8)
    old.copy(extra, 0, at + ENTRY_BYTES, at + ENTRY_BYTES + kept)
    entry.writeUInt32BE(extra.length, EXTRA_BYTES_AT)
    const names = old.subarray(at + ENTRY_BYTES + extraBytes).subarray(0, nameBytes)
    const padding = Buffer.alloc((8 - ((extra.length + nameBytes) % 8)) % 8)
    return Buffer.concat([entry, extra, names, padding])
  })
  const table = Buffer.concat(parts)
  const census = new Census(image, memory)
  census.run(undefined, () => {})
  const row = makeRow(store, census, table.length, isKnown)
  if (row === undefined) {
    report.note(
      'error',
      header.snapshotsOffset,
      () => 'the snapshot table stays without disk sizes: there is no room for a new one',
    )
    return
  }
  const tableAt = row * clusterBytes
  store.write(table, 0, table.length, tableAt)
  store.sync()
  writeSnapshotTable(store, snapshots.snapshots.length, tableAt)
  store.sync()
  report.note('fix', tableAt, () => 'a new snapshot table lies here, with the disk sizes')
}
