/**
 * The clusters that L2 tables name, as rows of neighbours. The rows of many tables are kept, because snapshots share tables, and because
 * each window of the file needs all of them.
 */
import { L2Entry } from '../check/l2-entry.js'
import type { Qcow2Structure } from '../check/structure.js'
import { readWords, wordBuffer } from '../words.js'

/** The kinds of rows; the last one has no clusters in the file. */
export const ROW = { data: 0, zero: 1, packed: 2, plainZero: 3 } as const
export type RowKind = (typeof ROW)[keyof typeof ROW]

/**
 * Is told a row: `index` is the entry of the table where it begins, `first` its first cluster in the file, and `length` how many
 * clusters and entries it has. A packed row is one entry: `first` and `length` are the place and the size of its bytes.
 */
export type VisitRow = (kind: RowKind, first: number, length: number, index: number) => void

/** How many rows, and how many tables, are kept: 16 bytes for each row. */
const MAX_ROWS = 4 * 2 ** 20
const MAX_TABLES = 2 ** 18
const CHUNK_ROWS = 2 ** 17
/** Neighbours in the file are read together, up to so many bytes. */
const READ_BYTES = 2 ** 18

interface Chunk {
  readonly first: Float64Array
  readonly index: Uint32Array
  /** Four times the length, and the kind. */
  readonly length: Uint32Array
}

export class TableRows {
  /** Entries that name what cannot be. */
  damaged = 0
  private readonly entry: L2Entry
  private readonly wordsPerEntry: number
  private readonly chunks: Chunk[] = []
  private length = 0
  /** Where the rows of a table begin, by its place; they end with one without a length. */
  private readonly known = new Map<number, number>()
  private readonly buffer: Buffer
  private readonly seenDamaged = new Set<number>()
  private words: Uint32Array = new Uint32Array(0)
  private wordsAt = 0
  private lastAt = -1

  constructor(private readonly image: Qcow2Structure) {
    this.entry = new L2Entry(image)
    this.wordsPerEntry = image.l2EntryBytes / 4
    this.buffer = wordBuffer(Math.max(READ_BYTES, image.clusterBytes))
  }

  /** Calls `visit` for the rows of the table at `at`, a possible place. Throws SystemError. */
  each(at: number, visit: VisitRow): void {
    const start = this.known.get(at)
    if (start !== undefined) this.replay(start, visit)
    else if (this.length >= MAX_ROWS || this.known.size >= MAX_TABLES) this.read(at, visit)
    else {
      const begins = this.length
      this.read(at, (kind, first, length, index) => {
        this.keep(kind, first, length, index)
        visit(kind, first, length, index)
      })
      this.keep(ROW.data, 0, 0, 0)
      this.known.set(at, begins)
    }
  }

  private replay(start: number, visit: VisitRow): void {
    for (let at = start; ; at++) {
      const { first, index, length } = this.chunks[Math.floor(at / CHUNK_ROWS)] as Chunk
      const i = at % CHUNK_ROWS
      const both = length[i] as number
      if (both === 0) return
      visit((both & 3) as RowKind, first[i] as number, both >>> 2, index[i] as number)
    }
  }

  private keep(kind: RowKind, first: number, length: number, index: number): void {
    const at = this.length++
    const number = Math.floor(at / CHUNK_ROWS)
    this.chunks[number] ??= {
      first: new Float64Array(CHUNK_ROWS),
      index: new Uint32Array(CHUNK_ROWS),
      length: new Uint32Array(CHUNK_ROWS),
    }
    const chunk = this.chunks[number] as Chunk
    const i = at % CHUNK_ROWS
    chunk.first[i] = first
    chunk.index[i] = index
    chunk.length[i] = length * 4 + kind
  }

  /** Reads a table, and joins its entries to rows. */
  private read(at: number, visit: VisitRow): void {
    const { entry, wordsPerEntry: step } = this
    const { clusterBytes, isExtended } = this.image
    const words = this.wordsOf(at)
    let damaged = 0
    let kind: RowKind = ROW.data
    let first = 0
    let length = 0
    let begins = 0
    for (let i = 0; i < words.length; i += step) {
      if (words[i] === 0 && words[i + 1] === 0 && !isExtended) continue
      entry.decode(words, i)
      const next = this.kindOf()
      if (next === undefined) continue
      if (next === -1) {
        damaged++
        continue
      }
      const index = i / step
      const host = next === ROW.plainZero ? 0 : entry.at / clusterBytes
      const follows =
        next === kind &&
        next !== ROW.packed &&
        index === begins + length &&
        (next === ROW.plainZero || host === first + length)
      if (follows && length > 0) {
        length++
        continue
      }
      if (length > 0) visit(kind, first, length, begins)
      kind = next
      first = next === ROW.packed ? entry.at : host
      begins = index
      length = next === ROW.packed ? entry.bytes : 1
    }
    if (length > 0) visit(kind, first, length, begins)
    if (damaged > 0 && !this.seenDamaged.has(at)) {
      this.seenDamaged.add(at)
      this.damaged += damaged
    }
  }

  /** Returns the kind of the entry; undefined if it names nothing, -1 if what it names cannot be. */
  private kindOf(): RowKind | -1 | undefined {
    const { entry, image } = this
    if (entry.isCompressed) {
      return !image.isExternal && image.isInFile(entry.at, entry.bytes) ? ROW.packed : -1
    }
    if (!entry.hasHost) {
      if (image.isExtended) return entry.zeroBits === 0 ? undefined : ROW.plainZero
      return entry.holdsData ? undefined : ROW.plainZero
    }
    const isPossible = image.isExternal || image.isInFile(entry.at, image.clusterBytes)
    if (!isPossible || !entry.isAligned) return -1
    return entry.holdsData ? ROW.data : ROW.zero
  }

  /** Returns the words of the table; a table that follows the last one in the file is read with those after it. */
  private wordsOf(at: number): Uint32Array {
    const { clusterBytes, store } = this.image
    const inWords = (at - this.wordsAt) / 4
    const isThere = inWords >= 0 && inWords + clusterBytes / 4 <= this.words.length
    if (!isThere) {
      const isNext = at === this.lastAt + clusterBytes
      const bytes = isNext ? this.buffer.length : clusterBytes
      this.words = readWords(store, this.buffer, bytes, at)
      this.wordsAt = at
    }
    this.lastAt = at
    const start = (at - this.wordsAt) / 4
    return this.words.subarray(start, start + clusterBytes / 4)
  }
}
