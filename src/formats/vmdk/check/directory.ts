/** A grain directory of a hosted sparse or a COWD extent, and its tables, a batch at a time. */
import type { Store } from '../../../io/store.js'
import { Bits } from '../../check/bits.js'
import { batchOf, TableReader } from './table-reader.js'

const ENTRY_BYTES = 4
/** An entry that names nothing. */
const SILENT = 0

export class Directory {
  readonly entries: Uint32Array
  /** The tables to walk, by their first sectors; 0 for none. */
  readonly wanted: Uint32Array
  readonly tables: TableReader
  /** Damaged entries, and in the redundant directory those that name the first one's table: a bit each. */
  private readonly skipped: Bits
  private readonly bytes: Buffer
  private first = 0

  constructor(
    private readonly store: Store,
    readonly name: string,
    readonly at: number,
    private readonly length: number,
    tableBytes: number,
  ) {
    const batch = batchOf(tableBytes)
    this.bytes = Buffer.from(new ArrayBuffer(batch * ENTRY_BYTES))
    this.entries = new Uint32Array(this.bytes.buffer)
    this.wanted = new Uint32Array(batch)
    this.tables = new TableReader(store, tableBytes)
    this.skipped = new Bits(length)
  }

  /** Reads the entries from `first` on, a batch of them; returns how many. */
  readEntries(first: number): number {
    const count = Math.min(this.entries.length, this.length - first)
    const wanted = count * ENTRY_BYTES
    const got = this.store.read(this.bytes, 0, wanted, this.at + first * ENTRY_BYTES)
    this.bytes.fill(0, got, wanted)
    this.first = first
    return count
  }

  /** Reads the tables of these entries that are to be walked; whether there may be an entry in them. */
  readTables(count: number): boolean {
    for (let i = 0; i < count; i++) {
      this.wanted[i] = this.isSkipped(i) ? SILENT : (this.entries[i] as number)
    }
    return this.tables.read(this.wanted, count)
  }

  /** Where in the file entry `i` of those that were read is. */
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
