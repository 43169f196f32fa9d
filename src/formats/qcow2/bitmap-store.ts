/**
 * Marks the bitmaps of an image that is written as in use, and writes them back.
 *
 * A power cut may keep any subset of the sectors written since the last sync. After every such subset a bitmap is marked as
 * in use, or it is true. Also, the clusters that its table names are counted and in the file, because checks walk the
 * tables of bitmaps in use, too.
 *
 *  (1) A bitmap's in_use flag is on the disk before the first change that the bitmap does not show.
 *  (2) Its bits are on the disk before its table names them, and the whole table is before the directory points at it.
 *  (3) All of that is on the disk before the write that clears the flag. That write also sets the number of the table's
 *      entries: both are in 8 aligned bytes, so in one sector. No table is read past its end.
 *  (4) A table's old clusters are given back after the pointer to the new ones is on the disk.
 *
 * QEMU writes the whole directory, and clears the autoclear bit meanwhile. Here only flags are written, each in its place,
 * and (1) and (3) allow every mixture of old and new ones. So the autoclear bit stays set, and bitmaps that do not change
 * stay valid after a power cut, too.
 */
import assert from 'node:assert'
import { layout, u32be, u64be } from '../../binary.js'
import { ImageError, isExpected, oneLine } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import { MAX_BITMAP_BYTES } from '../limits.js'
import { type BitmapMemory, isAuto, lossOf, type ValidBitmap } from './bitmap-memory.js'
import {
  ALL_ONES,
  ALL_ZEROS,
  type BitmapTable,
  bitmapBytesFor,
  bitsFor,
  encodeTable,
  isCluster,
  readBits,
  readTable,
  tableClusters,
} from './bitmap-table.js'
import { BITMAP_ENTRY, BITMAP_FLAG } from './bitmaps.js'

/** Two parts of a directory entry, which are written separately. */
const TABLE_OFFSET = layout({ tableOffset: u64be })
const STATE = layout({ tableEntries: u32be, flags: u32be })
assert.equal(BITMAP_ENTRY.at.flags, BITMAP_ENTRY.at.tableEntries + STATE.at.flags)

/** Allocates clusters of the file for tables and bits that must be added. */
export interface ClusterSpace {
  /** Returns the place of `clusters` free clusters in a row, whose reference counts are on the disk. */
  allocate(clusters: number): number
  /** Gives clusters back; nothing on the disk points at them any more. */
  free(at: number, clusters: number): void
}

/**
 * Marks bitmaps as in use; the marks are on the disk when it returns. Call it before the image's first change (`write`: those
 * bitmaps that record) and before the disk's first change of size (`resize`: all valid ones). It does nothing the second
 * time. One thread at a time may call it.
 * @param clearFeature writes the header's autoclear field without the bit of the bitmaps, without a sync; called if all of
 *   them are given up
 */
export function holdBitmaps(
  store: WritableStore,
  memory: BitmapMemory,
  before: 'write' | 'resize',
  clearFeature: () => void,
): void {
  const marks = new Int32Array(memory.marks)
  const marked: number[] = []
  if (memory.areLost && marks[memory.bitmaps.length] === 0) {
    clearFeature()
    marked.push(memory.bitmaps.length)
  }
  memory.bitmaps.forEach((bitmap, index) => {
    if (marks[index] !== 0 || (before === 'write' && !isAuto(bitmap))) return
    writeState(store, bitmap, bitmap.tableEntries, bitmap.flags | BITMAP_FLAG.inUse)
    marked.push(index)
  })
  if (marked.length === 0) return
  store.sync() // rule (1)
  for (const index of marked) marks[index] = 1
}

/**
 * Writes back the bitmaps that were marked, and marks them as valid, at the end of all writing. The memory cannot be used
 * afterwards. Throws what `store` throws if the state of the file is unknown.
 * @param sizeBytes the current size of the disk
 * @returns warnings about bitmaps that were not kept; these stay marked as in use
 */
export function storeBitmaps(
  store: WritableStore,
  memory: BitmapMemory,
  sizeBytes: number,
  space: ClusterSpace,
): string[] {
  const marks = new Int32Array(memory.marks)
  const warnings: string[] = []
  const stored: Stored[] = []
  memory.bitmaps.forEach((bitmap, index) => {
    if (marks[index] === 0) return
    const result =
      bitmap.problem || attempt(() => writeBack(store, memory, bitmap, sizeBytes, space))
    if (typeof result === 'string') warnings.push(lossOf(bitmap, result))
    else stored.push(result)
  })
  if (stored.length === 0) return warnings
  store.sync() // rule (2)
  const moved = stored.filter(({ bitmap, tableAt }) => tableAt !== bitmap.tableAt)
  for (const { bitmap, tableAt } of moved) writeTableOffset(store, bitmap, tableAt)
  const edited = stored.filter(({ isEdited }) => isEdited)
  for (const { tableAt, table } of edited) store.write(table, 0, table.length, tableAt)
  if (moved.length > 0 || edited.length > 0) store.sync() // rule (3)
  for (const { bitmap, tableEntries } of stored) {
    writeState(store, bitmap, tableEntries, bitmap.flags)
  }
  store.sync()
  for (const { bitmap } of moved) {
    space.free(bitmap.tableAt, tableClusters(bitmap.tableEntries, memory.clusterBytes)) // rule (4)
  }
  for (const { dropped } of stored) for (const at of dropped) space.free(at, 1)
  return warnings
}

/** Returns what `act` returns, or the message of its error. */
function attempt<T>(act: () => T): T | string {
  try {
    return act()
  } catch (error) {
    if (!isExpected(error)) throw error
    return oneLine(error)
  }
}

/** A bitmap whose bits are written; also its table, if that has moved. */
interface Stored {
  readonly bitmap: ValidBitmap
  readonly tableAt: number
  readonly tableEntries: number
  readonly table: Buffer
  /** Whether its table stays where it is, and is still to be written. */
  readonly isEdited: boolean
  /** The places of the clusters that a smaller disk no longer needs. */
  readonly dropped: readonly number[]
}

/** Writes the parts that do not matter while the bitmap is in use. Does not sync. */
function writeBack(
  store: WritableStore,
  memory: BitmapMemory,
  bitmap: ValidBitmap,
  sizeBytes: number,
  space: ClusterSpace,
): Stored {
  const { clusterBytes } = memory
  const old = readTable(store, bitmap.tableAt, bitmap.tableEntries, clusterBytes)
  const bits = bitsOf(store, memory, bitmap, sizeBytes, old)
  const table: BitmapTable = new Float64Array(Math.ceil(bits.length / clusterBytes))
  table.set(old.subarray(0, table.length))

  const chunks = chunksToWrite(memory, bitmap, bits, table, sizeBytes)
  const fresh = chunks.filter(chunk => !isCluster(table[chunk]!))
  const tableRun = tableClusters(table.length, clusterBytes)
  const isMoved = tableRun > tableClusters(old.length, clusterBytes)
  const clusters = fresh.length + (isMoved ? tableRun : 0)
  const at = clusters > 0 ? space.allocate(clusters) : 0
  fresh.forEach((chunk, index) => {
    table[chunk] = at + index * clusterBytes
  })
  const tableAt = isMoved ? at + fresh.length * clusterBytes : bitmap.tableAt
  const bytes = encodeTable(table)
  try {
    for (const chunk of chunks) writeChunk(store, bits, chunk, table[chunk]!, clusterBytes)
    if (isMoved) store.write(bytes, 0, bytes.length, tableAt)
  } catch (error) {
    if (clusters > 0) space.free(at, clusters)
    throw error
  }
  const isEdited = !isMoved && !bytes.equals(encodeTable(old))
  const dropped = [...old.subarray(table.length).filter(isCluster)]
  for (let i = tableRun; i < tableClusters(old.length, clusterBytes); i++) {
    dropped.push(bitmap.tableAt + i * clusterBytes)
  }
  return { bitmap, tableAt, tableEntries: table.length, table: bytes, isEdited, dropped }
}

/** Returns the bits of a disk of `sizeBytes`, zeros after them. The part by which a disk has grown is clean, as in QEMU. */
function bitsOf(
  store: WritableStore,
  { sizeBytes: oldBytes, clusterBytes }: BitmapMemory,
  { record, granularityBits }: ValidBitmap,
  sizeBytes: number,
  table: BitmapTable,
): Buffer {
  const bytes = bitmapBytesFor(sizeBytes, granularityBits)
  if (bytes > (record?.bits.byteLength ?? MAX_BITMAP_BYTES)) {
    throw new ImageError('UNSUPPORTED', `the disk has grown to ${sizeBytes} bytes`)
  }
  const count = bitsFor(Math.min(oldBytes, sizeBytes), granularityBits)
  const bits = record ? Buffer.from(record.bits, 0, bytes) : Buffer.alloc(bytes)
  if (!record) readBits(store, table, bits, count, clusterBytes)
  const inLast = count % 8
  if (sizeBytes < oldBytes && inLast !== 0) bits[bytes - 1] = bits[bytes - 1]! & (2 ** inLast - 1)
  return bits
}

/**
 * Returns the chunks that differ from the file and need a cluster; sets the entries of those that need none. If the disk has
 * grown, the chunk that was last before may hold anything past its old end. If it has become smaller, the chunk that is last now
 * holds bits past the new end; where all of it is ones, readers leave those out.
 */
function chunksToWrite(
  { clusterBytes, sizeBytes: oldBytes }: BitmapMemory,
  { record, tableEntries }: ValidBitmap,
  bits: Buffer,
  table: BitmapTable,
  sizeBytes: number,
): number[] {
  const changed = record && new Uint8Array(record.changed)
  const isShrunk = sizeBytes < oldBytes
  const last = Math.min(tableEntries, table.length) - 1
  const firstNew =
    sizeBytes === oldBytes || (isShrunk && table[last] === ALL_ONES) ? last + 1 : last
  const zeros = Buffer.alloc(clusterBytes)
  const chunks: number[] = []
  table.forEach((entry, chunk) => {
    if (chunk < firstNew && !changed?.[chunk]) return
    const part = bits.subarray(chunk * clusterBytes, (chunk + 1) * clusterBytes)
    if (isCluster(entry) || !part.equals(zeros.subarray(0, part.length))) chunks.push(chunk)
    else table[chunk] = ALL_ZEROS
  })
  return chunks
}

/** Writes a whole cluster: all bits after the last one must be zero. */
function writeChunk(
  store: WritableStore,
  bits: Buffer,
  chunk: number,
  at: number,
  clusterBytes: number,
): void {
  const cluster = Buffer.alloc(clusterBytes)
  bits.copy(cluster, 0, chunk * clusterBytes, (chunk + 1) * clusterBytes)
  store.write(cluster, 0, clusterBytes, at)
}

/** Writes the state within one sector: rule (3). */
function writeState(
  store: WritableStore,
  { entryAt }: ValidBitmap,
  tableEntries: number,
  flags: number,
): void {
  const state = STATE.encode({ tableEntries, flags })
  store.write(state, 0, state.length, entryAt + BITMAP_ENTRY.at.tableEntries)
}

function writeTableOffset(store: WritableStore, { entryAt }: ValidBitmap, tableAt: number): void {
  const offset = TABLE_OFFSET.encode({ tableOffset: tableAt })
  store.write(offset, 0, offset.length, entryAt + BITMAP_ENTRY.at.tableOffset)
}
