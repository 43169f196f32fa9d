/** Walks all tables of an image, in the order of the disk. Each is read once in a walk, past all caches. */
import type { Store } from '../../io/store.js'
import { Bits } from '../check/bits.js'
import { clusterBytes, ENTRY_BYTES, type QcowHeader, tableBytes } from './header.js'
import { COMPRESSED, packedAt, readWord } from './words.js'

/** How much of the L1 table is read at once. */
const L1_PIECE_BYTES = 64 * 1024

/**
 * Gets the entries of a table. `entryAt` is the place in the file of the entry, or of the first one of a run, and `cluster` is
 * the number of the cluster of the disk that it maps.
 */
export interface EntryVisitor {
  /** Called for `clusters` clusters in a row at `host` of the file, even if that place is impossible. */
  run(host: number, clusters: number, entryAt: number, cluster: number): void
  /** Called for a compressed cluster of `packedBytes` bytes at `at`. */
  packed(at: number, packedBytes: number, entryAt: number, cluster: number): void
}

export class TableWalk {
  /** The L1 entries whose tables are not walked. */
  private readonly skipped: Bits
  private readonly clusterBytes: number
  private readonly bytes: Buffer
  /** The last table that was read, as halves of entries. vimgfs runs only on little-endian machines. */
  private readonly words: Uint32Array

  constructor(
    private readonly store: Store,
    private readonly header: QcowHeader,
  ) {
    this.skipped = new Bits(header.l1Entries)
    this.clusterBytes = clusterBytes(header)
    this.bytes = Buffer.from(new ArrayBuffer(tableBytes(header)))
    this.words = new Uint32Array(this.bytes.buffer)
  }

  skip(index: number): void {
    this.skipped.set(index)
  }

  isSkipped(index: number): boolean {
    return this.skipped.has(index)
  }

  /** Returns the place of an L1 entry in the file. */
  l1EntryAt(index: number): number {
    return this.header.l1Offset + index * ENTRY_BYTES
  }

  /** Calls `visit` for each L1 entry that names a table, wherever it lies; places above 2^53 are rounded. */
  eachTable(visit: (index: number, table: number) => void): void {
    const { l1Entries } = this.header
    const piece = Buffer.alloc(L1_PIECE_BYTES)
    for (let first = 0; first < l1Entries; ) {
      const data = this.store.nextData(this.l1EntryAt(first))
      if (data < 0) return
      first += Math.floor((data - this.l1EntryAt(first)) / ENTRY_BYTES)
      const count = Math.min(l1Entries - first, L1_PIECE_BYTES / ENTRY_BYTES)
      if (count <= 0) return
      const wanted = count * ENTRY_BYTES
      const got = this.store.read(piece, 0, wanted, this.l1EntryAt(first))
      piece.fill(0, got, wanted)
      for (let i = 0; i < count; i++) {
        const table = readWord(piece, i * ENTRY_BYTES)
        if (table !== 0) visit(first + i, table)
      }
      first += count
    }
  }

  /** Visits the entries of all tables that are not skipped. Calls `progress` with the part that is done, 0 to 1. */
  eachEntry(visitor: EntryVisitor, progress: (part: number) => void = () => {}): void {
    const { l1Entries, l2Bits } = this.header
    this.eachTable((index, table) => {
      if (this.isSkipped(index) || !this.read(table)) return
      this.visitTable(table, index * 2 ** l2Bits, visitor)
      progress(index / l1Entries)
    })
  }

  /** Whether a table, which is in the file, names nothing. */
  isBlank(table: number): boolean {
    return !this.read(table) || this.words.every(word => word === 0)
  }

  /** Reads a table, which is in the file. Returns false if it is a hole. */
  private read(table: number): boolean {
    const { store, bytes } = this
    const data = store.nextData(table)
    if (data < 0 || data >= table + bytes.length) return false
    const got = store.read(bytes, 0, bytes.length, table)
    bytes.fill(0, got)
    bytes.swap32()
    return true
  }

  private visitTable(table: number, firstCluster: number, visitor: EntryVisitor): void {
    const { words, clusterBytes } = this
    const { clusterBits } = this.header
    const entries = words.length / 2
    let start = 0
    let host = 0
    /** The place of the next cluster of the run; -1 if there is no run. */
    let next = -1
    for (let i = 0; i < entries; i++) {
      const high = words[2 * i] as number
      const place = high * 2 ** 32 + (words[2 * i + 1] as number)
      if (place === next) {
        next += clusterBytes
        continue
      }
      if (next >= 0) visitor.run(host, i - start, table + start * ENTRY_BYTES, firstCluster + start)
      next = -1
      if (place === 0) continue
      if (high < COMPRESSED) {
        start = i
        host = place
        next = place + clusterBytes
        continue
      }
      const { at, packedBytes } = packedAt(high, words[2 * i + 1] as number, clusterBits)
      visitor.packed(at, packedBytes, table + i * ENTRY_BYTES, firstCluster + i)
    }
    if (next >= 0)
      visitor.run(host, entries - start, table + start * ENTRY_BYTES, firstCluster + start)
  }
}
