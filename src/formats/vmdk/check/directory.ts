/** Reads a grain directory of a hosted sparse or COWD extent, and its tables, batch by batch. */
import type { Store } from '../../../io/store.js'
import { Bits } from '../../check/bits.js'
import { batchOf, TableReader } from './table-reader.js'
import { ENTRY_BYTES, UNALLOCATED } from '../entries.js'

/** How many entries are read from the file at once. */
const CHUNK_ENTRIES = 16_384

export class Directory {
  /** How many entries a batch has. */
  entries: Uint32Array
  /** The first sectors of the tables to walk; 0 for none. */
  readonly wanted: Uint32Array
  readonly tables: TableReader
  /** A bit for each entry that is damaged, or, in the redundant directory, names the first one's table. */
  private readonly skipped: Bits
  private readonly bytes: Buffer
  private readonly chunk: Uint32Array
  /** The first entry of the chunk; -1 before it is read. */
  private chunkFirst = -1
  private readonly batch: number
  private first = 0

  constructor(
    private readonly store: Store,
    readonly name: string,
    readonly at: number,
    private readonly length: number,
    tableBytes: number,
  ) {
    this.batch = batchOf(tableBytes)
    // Read whole batches, but no more entries than there are.
    const batches = Math.min(Math.floor(CHUNK_ENTRIES / this.batch), Math.ceil(length / this.batch))
    this.bytes = Buffer.from(new ArrayBuffer(batches * this.batch * ENTRY_BYTES))
    this.chunk = new Uint32Array(this.bytes.buffer)
    this.entries = this.chunk
    this.wanted = new Uint32Array(this.batch)
    this.tables = new TableReader(store, tableBytes)
    this.skipped = new Bits(length)
  }

  /** Reads the entries of the batch that begins at `first`. Returns how many. */
  readEntries(first: number): number {
    const { chunk, length } = this
    if (!this.hasRead(first)) this.readChunk(first)
    const inChunk = first - this.chunkFirst
    this.entries = chunk.subarray(inChunk, inChunk + this.batch)
    this.first = first
    return Math.min(this.batch, length - first)
  }

  /** Returns the start of the first batch from `first` on that may name a table. It skips holes of the file. */
  skipHole(first: number): number {
    const { at, batch, length, store } = this
    if (this.hasRead(first)) return first
    const next = store.nextData(at + first * ENTRY_BYTES)
    if (next < 0) return length
    const entry = Math.floor((next - at) / ENTRY_BYTES)
    return Math.min(length, Math.max(first, entry - (entry % batch)))
  }

  private hasRead(first: number): boolean {
    const { chunk, chunkFirst } = this
    return chunkFirst >= 0 && first >= chunkFirst && first < chunkFirst + chunk.length
  }

  private readChunk(first: number): void {
    const { bytes, chunk, length, store, at } = this
    const wanted = Math.min(chunk.length, length - first) * ENTRY_BYTES
    bytes.fill(0, store.read(bytes, 0, wanted, at + first * ENTRY_BYTES), wanted)
    this.chunkFirst = first
  }

  /** Reads the tables to walk of these entries. Returns whether they may have an entry. */
  readTables(count: number): boolean {
    for (let i = 0; i < count; i++) {
      this.wanted[i] = this.isSkipped(i) ? UNALLOCATED : (this.entries[i] as number)
    }
    return this.tables.read(this.wanted, count)
  }

  /** Returns the place in the file of entry `i` of the batch. */
  entryAt(i: number): number {
    return this.at + (this.first + i) * ENTRY_BYTES
  }

  passOver(i: number): void {
    this.skipped.set(this.first + i)
  }

  isSkipped(i: number): boolean {
    return this.skipped.has(this.first + i)
  }
}
