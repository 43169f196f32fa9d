/**
 * How the bitmaps of a file that is written are marked as in use, and how they are written back.
 *
 * A power cut may keep any subset of the sectors written since the last sync. After every such subset
 * a bitmap is marked as in use, or it is true; and what its table names is counted and in the file,
 * for checks walk the tables of bitmaps in use, too.
 *
 *  (1) A bitmap's in_use flag is on disk before the first change that it does not show.
 *  (2) Its bits are on disk before its table names them, and the table, whole, before the directory
 *      points at it.
 *  (3) All of that is on disk before the write that clears the flag. That write also gives the number
 *      of the table's entries: 8 aligned bytes, so one sector has both. No table is read beyond its end.
 *  (4) A table's old clusters are given back when the pointer to the new one is on disk.
 *
 * QEMU writes the whole directory, and clears the autoclear bit meanwhile. Here only flags are written,
 * each in its place, and every mixture of old and new ones is one that (1) and (3) allow. So the
 * autoclear bit stays set, and what is left alone stays valid after a power cut, too.
 */
import assert from 'node:assert'
import { layout, u32be, u64be } from '../../binary.js'
import { ImageError, isExpected, oneLine } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import { MAX_BITMAP_BYTES } from '../limits.js'
import { type BitmapMemory, isAuto, lossOf, type ValidBitmap } from './bitmap-memory.js'
import {
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

/** Two pieces of an entry of the directory, which are written apart. */
const TABLE_OFFSET = layout({ tableOffset: u64be })
const STATE = layout({ tableEntries: u32be, flags: u32be })
assert.equal(BITMAP_ENTRY.at.flags, BITMAP_ENTRY.at.tableEntries + STATE.at.flags)

/** The file's clusters, for what must be added. */
export interface ClusterSpace {
  /** Where `clusters` free clusters in a row begin; their reference counts are on disk. */
  allocate(clusters: number): number
  /** Gives them back; nothing on disk points at them any more. */
  free(at: number, clusters: number): void
}

/**
 * Marks bitmaps as in use, on disk when it returns, before the image's first change (`write`: those
 * that record) or before the disk's first change of size (`resize`: all that are valid). Does nothing
 * when that has been done; one thread at a time.
 * @param clearFeature writes the header's autoclear field without the bit of the bitmaps, without a
 *   sync; called where all of them are given up
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
 * Writes back the bitmaps that were marked and marks them as valid, at the end of all writing. The
 * memory is used up then. Throws what `store` throws when nothing can be said of the file any more.
 * @param sizeBytes the disk's size now
 * @returns what was not kept, for the user; such bitmaps stay marked as in use
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
  return warnings
}

/** What `act` returns, or what went wrong. */
function attempt<T>(act: () => T): T | string {
  try {
    return act()
  } catch (error) {
    if (!isExpected(error)) throw error
    return oneLine(error)
  }
}

/** A bitmap whose bits are written, and its table where it moved. */
interface Stored {
  readonly bitmap: ValidBitmap
  readonly tableAt: number
  readonly tableEntries: number
  readonly table: Buffer
  /** Its table stays where it is, and is still to be written there. */
  readonly isEdited: boolean
}

/** Writes what nothing depends on as long as the bitmap is in use. Nothing is synced. */
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
  assert(table.length >= old.length, 'a disk never shrinks')
  table.set(old)

  const chunks = chunksToWrite(memory, bitmap, bits, table, sizeBytes > memory.sizeBytes)
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
  return { bitmap, tableAt, tableEntries: table.length, table: bytes, isEdited }
}

/** The bits of a disk that has `sizeBytes` now. What a disk has grown by is clean, as in QEMU. */
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
  if (record) return Buffer.from(record.bits, 0, bytes)
  const bits = Buffer.alloc(bytes)
  readBits(store, table, bits, bitsFor(oldBytes, granularityBits), clusterBytes)
  return bits
}

/**
 * The chunks that differ from the file and need a cluster; sets the entry of those that need none.
 * Where the disk has grown, the last chunk of before may hold anything behind its old end.
 */
function chunksToWrite(
  { clusterBytes }: BitmapMemory,
  { record, tableEntries }: ValidBitmap,
  bits: Buffer,
  table: BitmapTable,
  isGrown: boolean,
): number[] {
  const changed = record && new Uint8Array(record.changed)
  const firstNew = isGrown ? tableEntries - 1 : tableEntries
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

/** All of the cluster: what lies behind the last bit must be zero. */
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

/** In one sector: rule (2). */
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
