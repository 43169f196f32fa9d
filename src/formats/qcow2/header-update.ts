/**
 * Changes fields of the header in place (QEMU docs/interop/qcow2.rst, "Header"). Unless it says otherwise, each function
 * makes one write of at most 24 bytes within the first sector, so a power cut leaves the old fields or the new ones. None of
 * them syncs: the caller decides the order.
 */
import assert from 'node:assert'
import { bits64be, type Layout, layout, u32be, u64be } from '../../binary.js'
import type { WritableStore } from '../../io/store.js'
import { FIELD_AT } from './header-layout.js'

// Fields that change together follow one another.
const DISK_SIZE = layout({ sizeBytes: u64be })
const L1 = layout({ entries: u32be, offset: u64be })
assert.equal(FIELD_AT.l1Offset, FIELD_AT.l1Entries + L1.at.offset)
const REFCOUNT_TABLE = layout({ offset: u64be, clusters: u32be })
assert.equal(
  FIELD_AT.refcountTableClusters,
  FIELD_AT.refcountTableOffset + REFCOUNT_TABLE.at.clusters,
)
const SNAPSHOTS = layout({ count: u32be, offset: u64be })
assert.equal(FIELD_AT.snapshotsOffset, FIELD_AT.snapshotCount + SNAPSHOTS.at.offset)
const FEATURES = layout({ incompatible: bits64be, compatible: bits64be, autoclear: bits64be })
assert.equal(FIELD_AT.autoclear, FIELD_AT.incompatible + FEATURES.at.autoclear)

export interface Features {
  readonly incompatible: bigint
  readonly compatible: bigint
  readonly autoclear: bigint
}

/** Writes the disk's size, in bytes. */
export function writeDiskSize(store: WritableStore, sizeBytes: number): void {
  put(store, FIELD_AT.sizeBytes, DISK_SIZE, { sizeBytes })
}

/** Writes the active L1 table: the number of its entries, and its place in the file. */
export function writeL1(store: WritableStore, entries: number, offset: number): void {
  put(store, FIELD_AT.l1Entries, L1, { entries, offset })
}

/** Writes the refcount table: its place in the file, and its length in clusters. */
export function writeRefcountTable(store: WritableStore, offset: number, clusters: number): void {
  put(store, FIELD_AT.refcountTableOffset, REFCOUNT_TABLE, { offset, clusters })
}

/**
 * Writes the refcount table, and the width of the counts in its blocks: 2^`order` bits. The image must have version 3. It is
 * one write of 52 bytes of the first sector.
 */
export function writeRefcounts(
  store: WritableStore,
  offset: number,
  clusters: number,
  order: number,
): void {
  const fields = Buffer.alloc(FIELD_AT.refcountOrder + u32be.size - FIELD_AT.refcountTableOffset)
  store.read(fields, 0, fields.length, FIELD_AT.refcountTableOffset)
  REFCOUNT_TABLE.put(fields, 0, { offset, clusters })
  u32be.put(fields, FIELD_AT.refcountOrder - FIELD_AT.refcountTableOffset, order)
  store.write(fields, 0, fields.length, FIELD_AT.refcountTableOffset)
}

/** Writes the type of the header extension at `at`; its length stays. */
export function writeExtensionType(store: WritableStore, at: number, type: number): void {
  put(store, at, layout({ type: u32be }), { type })
}

/** Ends the header extensions at `at`. */
export function endExtensions(store: WritableStore, at: number): void {
  put(store, at, layout({ type: u32be, length: u32be }), { type: 0, length: 0 })
}

/** Writes the snapshot table: the number of its entries, and its place in the file. */
export function writeSnapshotTable(store: WritableStore, count: number, offset: number): void {
  put(store, FIELD_AT.snapshotCount, SNAPSHOTS, { count, offset })
}

/** The properties that decide which tables an image has. */
export interface State {
  readonly sizeBytes: number
  readonly l1Entries: number
  readonly l1Offset: number
  readonly refcountTableOffset: number
  readonly refcountTableClusters: number
  readonly snapshotCount: number
  readonly snapshotsOffset: number
  /** Version 2 has none. */
  readonly autoclear: bigint
}

/** Writes all of this in one write of at most 72 bytes of the first sector. */
export function writeState(store: WritableStore, version: 2 | 3, state: State): void {
  const end = version === 2 ? FIELD_AT.incompatible : FIELD_AT.incompatible + FEATURES.size
  const fields = Buffer.alloc(end - FIELD_AT.sizeBytes)
  store.read(fields, 0, fields.length, FIELD_AT.sizeBytes)
  DISK_SIZE.put(fields, 0, state)
  L1.put(fields, FIELD_AT.l1Entries - FIELD_AT.sizeBytes, {
    entries: state.l1Entries,
    offset: state.l1Offset,
  })
  REFCOUNT_TABLE.put(fields, FIELD_AT.refcountTableOffset - FIELD_AT.sizeBytes, {
    offset: state.refcountTableOffset,
    clusters: state.refcountTableClusters,
  })
  SNAPSHOTS.put(fields, FIELD_AT.snapshotCount - FIELD_AT.sizeBytes, {
    count: state.snapshotCount,
    offset: state.snapshotsOffset,
  })
  if (version === 3) {
    const { at } = FEATURES
    bits64be.put(fields, FIELD_AT.incompatible - FIELD_AT.sizeBytes + at.autoclear, state.autoclear)
  }
  store.write(fields, 0, fields.length, FIELD_AT.sizeBytes)
}

/** Writes all feature bits. The image must have version 3: version 2 has other bytes there. */
export function writeFeatures(store: WritableStore, features: Features): void {
  const { incompatible, compatible, autoclear } = features
  put(store, FIELD_AT.incompatible, FEATURES, { incompatible, compatible, autoclear })
}

function put<F>(
  store: WritableStore,
  at: number,
  structure: Layout<F>,
  value: Parameters<Layout<F>['encode']>[0],
): void {
  const bytes = structure.encode(value)
  store.write(bytes, 0, bytes.length, at)
}
