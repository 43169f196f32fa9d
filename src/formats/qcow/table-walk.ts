/** All tables of an image, in the order of the disk: each is read once a walk, past all caches. */
import type { Store } from '../../io/store.js'
import { Bits } from '../check/bits.js'
import { clusterBytes, ENTRY_BYTES, type QcowHeader, tableBytes } from './header.js'
import { COMPRESSED, packedAt, readWord } from './words.js'

/** Of the L1 table that is read at once. */
const L1_PIECE_BYTES = 64 * 1024

/**
 * What the entries of a table say. `entryAt` is where in the file the entry is, or the first of them,
 * and `cluster` which cluster of the disk it maps.
 */
export interface EntryVisitor {
  /** `clusters` clusters, at `host` of the file and one behind the other, whatever that place is. */
  run(host: number, clusters: number, entryAt: number, cluster: number): void
  /** A compressed cluster of `packedBytes` bytes at `at`. */
  packed(at: number, packedBytes: number, entryAt: number, cluster: number): void
}

export class TableWalk {
  /** L1 entries whose tables are not walked. */
  private readonly skipped: Bits
  private readonly clusterBytes: number
  private readonly bytes: Buffer
  /** The table that was read last, by halves of entries; vimgfs runs where words are little-endian. */
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

  /** Where in the file an L1 entry is. */
  l1EntryAt(index: number): number {
    return this.header.l1Offset + index * ENTRY_BYTES
  }

  /** Calls `visit` for each L1 entry that names a table, wherever that is; above 2^53 places are rounded. */
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

  /** Visits what the tables say that are not skipped; `progress` is told which part is done, 0 to 1. */
  eachEntry(visitor: EntryVisitor, progress: (part: number) => void = () => {}): void {
    const { l1Entries, l2Bits } = this.header
    this.eachTable((index, table) => {
      if (this.isSkipped(index) || !this.read(table)) return
      this.visitTable(table, index * 2 ** l2Bits, visitor)
      progress(index / l1Entries)
    })
  }

  /** Reads a table, which is in the file; false where it is a hole. */
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
    /** Where the next cluster of the run would be; -1 where there is none. */
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
