/**
 * The ranges that the kernel may hold in pages of files that show the same bytes, in memory that all threads share. Programs read and write
 * these files past the page cache, so only maps have pages.
 *
 * A thread notes a page before it reads the bytes for it, and a thread that writes looks for pages after it has written. So a
 * page with old bytes is always found.
 */
import type { FilePlace } from '../writing/truncations.js'
import { withLock } from '../writing/word-lock.js'

/** Words of the shared memory. */
const LOCK = 0
const COUNT = 1
/** The number of drops that were asked for without waiting, and of those that are done. */
const ASKED = 2
const DONE = 3
const WORDS = 4

/** The numbers of a record: the file, its disk, where it lies there, and the range of the disk that pages may cover. */
const FILE = 0
const DISK = 1
const START = 2
const FROM = 3
const TO = 4
const RECORD = 5
/** The most files with pages. */
const RECORDS = 1024

/** A range of a disk, in bytes. */
export interface DiskRange {
  readonly disk: number
  readonly from: number
  readonly to: number
}

/** Pages to drop: bytes of a file. */
export interface Pages {
  readonly file: number
  readonly offset: number
  readonly length: number
}

export class CachedPages {
  private readonly words: Int32Array
  private readonly records: Float64Array

  constructor(readonly shared = new SharedArrayBuffer(8 * (WORDS / 2 + RECORDS * RECORD))) {
    this.words = new Int32Array(shared, 0, WORDS)
    this.records = new Float64Array(shared, 4 * WORDS)
  }

  /** Notes that the kernel is about to hold bytes of a file in pages. Returns false if too many files have pages. */
  note({ file, disk, start }: FilePlace, offset: number, length: number): boolean {
    const { words, records } = this
    const from = start + offset
    return withLock(words, LOCK, () => {
      const count = words[COUNT] as number
      let at = 0
      while (at < count * RECORD && records[at] !== file) at += RECORD
      if (at === RECORDS * RECORD) return false
      if (at < count * RECORD) {
        records[at + FROM] = Math.min(records[at + FROM] as number, from)
        records[at + TO] = Math.max(records[at + TO] as number, from + length)
      } else {
        records.set([file, disk, start, from, from + length], at)
        Atomics.store(words, COUNT, count + 1)
      }
      return true
    })
  }

  /** Reports whether the kernel may hold bytes of the range in pages of any file but `except`. */
  has(range: DiskRange, except = 0): boolean {
    const { words } = this
    if (Atomics.load(words, COUNT) === 0 || range.to <= range.from) return false
    return withLock(words, LOCK, () => {
      for (let i = 0; i < (words[COUNT] as number); i++) {
        if (this.overlaps(i * RECORD, range, except)) return true
      }
      return false
    })
  }

  /**
   * Returns what to drop so that the kernel holds nothing of the range in pages of any file but `except`. Files all of whose pages
   * are among these count as having none from now on: a page that is noted later is another one.
   */
  take(range: DiskRange, except = 0): Pages[] {
    const { words, records } = this
    const found: Pages[] = []
    if (Atomics.load(words, COUNT) === 0 || range.to <= range.from) return found
    withLock(words, LOCK, () => {
      let count = words[COUNT] as number
      for (let at = (count - 1) * RECORD; at >= 0; at -= RECORD) {
        if (!this.overlaps(at, range, except)) continue
        const value = (index: number) => records[at + index] as number
        const [file, start, from, to] = [value(FILE), value(START), value(FROM), value(TO)] as const
        const first = Math.max(from, range.from)
        found.push({ file, offset: first - start, length: Math.min(to, range.to) - first })
        if (from < range.from || to > range.to) continue
        count--
        records.copyWithin(at, count * RECORD, (count + 1) * RECORD)
      }
      Atomics.store(words, COUNT, count)
    })
    return found
  }

  /** Returns the number of a drop that nobody waits for yet. Such drops may be done in another order. */
  ask(): number {
    return (Atomics.add(this.words, ASKED, 1) + 1) | 0
  }

  /** Returns the number of the last drop that was asked for; undefined if all are done. */
  pending(): number | undefined {
    const asked = Atomics.load(this.words, ASKED)
    return asked === Atomics.load(this.words, DONE) ? undefined : asked
  }

  /** Notes that one more drop is done. */
  done(): void {
    Atomics.add(this.words, DONE, 1)
  }

  private overlaps(at: number, { disk, from, to }: DiskRange, except: number): boolean {
    const { records } = this
    return (
      records[at + DISK] === disk &&
      records[at + FILE] !== except &&
      (records[at + FROM] as number) < to &&
      (records[at + TO] as number) > from
    )
  }
}
