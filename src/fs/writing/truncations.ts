/**
 * The handles that have truncated a file of a disk to 0, by O_TRUNC or by ftruncate(fd, 0). They are in memory that all threads
 * share, because any thread may get a handle's requests. It holds places on the disk; methods take and give places in the file.
 *
 *  (1) Such a handle has a mark: the end of what it has written or extended to. A write or an ftruncate past the mark
 *      zeroes the gap in between, once, before the mark passes it. Until then nothing past the mark changes.
 *  (2) What other handles have written past the mark since the truncation stays, as in a file.
 *  (3) Each write of the disk registers here before it changes the disk, and waits while a gap is zeroed. So zeroing a gap
 *      never removes a later write, in whatever order the requests arrive.
 */
import { constants } from 'node:os'
import { SystemError } from '../../errors.js'
import { dropBetween, type GapActions } from './gap-actions.js'
import { withLock } from './word-lock.js'

const { EBUSY } = constants.errno

const SLOTS = 32
/** The most ranges of other handles' writes that a slot remembers. */
const RANGES = 2048
const MAX_HANDLE = 2 ** 31 - 1

/** Words that all slots share. */
const LOCK = 0
const ACTIVE = 1
const LAST_HANDLE = 2
const LAST_ORDER = 3
/** The handles whose last write failed; each is in the word with the index handle % FAILED_WORDS. */
const FAILED = 4
const FAILED_WORDS = 64
const HEAD_WORDS = FAILED + FAILED_WORDS

/** Words of a slot. */
const HANDLE = 0
/** The number of the truncation; the last one decides the size that is shown. */
const ORDER = 1
const FLAGS = 2
const RANGE_COUNT = 3
const FILE = 4
const SLOT_WORDS = 5

/** ftruncate has told the program that the file is empty, and it has not written since. */
const EMPTIED = 1
/** A descriptor of the handle was closed since its last use: the handle may be about to be released. */
const FLUSHED = 2
/** Programs may have read past the mark since, so the kernel may have cached old pages. */
const READ = 4
/** There were more ranges than RANGES. */
const CROWDED = 8
/** The handle was opened with O_APPEND. */
const APPENDING = 16

/** A slot's numbers: its mark, the time of its last FLUSH (see `now`), the end of its file, then pairs of start and end. */
const [CLOSED_AT, END, FIRST_RANGE] = [1, 2, 3] as const
const SLOT_NUMBERS = FIRST_RANGE + 2 * RANGES
const WORDS_BYTES = 4 * (HEAD_WORDS + SLOTS * SLOT_WORDS)

/**
 * How long a request for the size waits for the RELEASE, counted from the FLUSH. RELEASE follows the last FLUSH at once, but
 * another thread may handle it, and the system may be busy.
 */
const RELEASE_MS = 250

/** Where a file lies on its disk, from `start` up to `end`, in bytes. Files and disks have numbers. */
export interface FilePlace {
  readonly file: number
  readonly disk: number
  readonly start: number
  readonly end: number
}
const WHOLE_DISK: FilePlace = { file: 0, disk: 0, start: 0, end: Number.POSITIVE_INFINITY }

export class Truncations {
  private readonly words: Int32Array
  private readonly numbers: Float64Array

  constructor(
    readonly shared = new SharedArrayBuffer(WORDS_BYTES + 8 * SLOTS * SLOT_NUMBERS),
    /** Called when a read may make the kernel cache pages that a gap will change. */
    private readonly onRead: () => void = () => {},
    private readonly place = WHOLE_DISK,
  ) {
    this.words = new Int32Array(shared, 0, WORDS_BYTES / 4)
    this.numbers = new Float64Array(shared, WORDS_BYTES)
  }

  /** Returns those of the file at `place` of the same disk. */
  at(place: FilePlace): Truncations {
    return new Truncations(this.shared, this.onRead, place)
  }

  /** Whether any handle has truncated a file of the disk. If not, no other method needs to be called. */
  get isActive(): boolean {
    return Atomics.load(this.words, ACTIVE) > 0
  }

  /** Returns a number above 0 for a handle that writes. */
  newHandle(): number {
    for (;;) {
      const last = Atomics.add(this.words, LAST_HANDLE, 1)
      const handle = ((last >>> 0) % MAX_HANDLE) + 1
      if (this.slotOf(handle) < 0) return handle
    }
  }

  /** Empties the file for `handle`. Returns false if too many handles have done so. */
  truncate(handle: number, isByOpening: boolean, isAppending = false): boolean {
    return this.locked(() => {
      const known = this.slotOf(handle)
      const slot = known < 0 ? this.slotWith(0) : known
      if (slot < 0) return false
      const at = this.slotAt(slot)
      // O_TRUNC makes the kernel drop all cached pages; ftruncate does not.
      this.words[at + FLAGS] = (isByOpening ? 0 : EMPTIED | READ) | (isAppending ? APPENDING : 0)
      if (!isByOpening) this.onRead()
      this.words[at + RANGE_COUNT] = 0
      this.words[at + ORDER] = Atomics.add(this.words, LAST_ORDER, 1)
      this.words[at + FILE] = this.place.file
      this.numbers[slot * SLOT_NUMBERS] = this.place.start
      this.numbers[slot * SLOT_NUMBERS + END] = this.place.end
      Atomics.store(this.words, at + HANDLE, handle)
      if (known < 0) Atomics.add(this.words, ACTIVE, 1)
      return true
    })
  }

  /** Forgets a handle that is closed for good. */
  release(handle: number): void {
    if (!this.isActive) return
    this.locked(() => {
      const slot = this.slotOf(handle)
      if (slot < 0) return
      const word = this.slotAt(slot) + HANDLE
      Atomics.store(this.words, word, 0)
      Atomics.sub(this.words, ACTIVE, 1)
      Atomics.notify(this.words, word)
    })
  }

  /**
   * Notes that a descriptor of the handle is closed. Returns whether the program wrongly believes that the file is empty: it
   * truncated by ftruncate and wrote nothing afterwards.
   */
  close(handle: number): boolean {
    const slot = this.isActive ? this.slotOf(handle) : -1
    if (slot < 0) return false
    this.numbers[slot * SLOT_NUMBERS + CLOSED_AT] = now()
    const flags = Atomics.or(this.words, this.slotAt(slot) + FLAGS, FLUSHED)
    return (flags & EMPTIED) !== 0
  }

  /** Returns the mark of a handle that has truncated. */
  markOf(handle: number): number | undefined {
    const slot = this.isActive ? this.slotOf(handle) : -1
    return slot < 0 ? undefined : this.markAt(slot)
  }

  private markAt(slot: number): number {
    return (this.numbers[slot * SLOT_NUMBERS] as number) - this.place.start
  }

  /** Returns the mark of the last handle that truncated the file and is still open. */
  lastMark(): number | undefined {
    while (this.isActive) {
      const slot = this.lastSlot()
      if (slot < 0) return undefined
      const at = this.slotAt(slot)
      const handle = Atomics.load(this.words, at + HANDLE)
      if (handle === 0) continue
      const left = this.closingFor(slot)
      if (left > 0) Atomics.wait(this.words, at + HANDLE, handle, left)
      if (Atomics.load(this.words, at + HANDLE) === handle) return this.markAt(slot)
    }
    return undefined
  }

  /** Whether the last handle that truncated the file appends. */
  get isAppending(): boolean {
    const slot = this.lastSlot()
    return slot >= 0 && (Atomics.load(this.words, this.slotAt(slot) + FLAGS) & APPENDING) !== 0
  }

  /** Whether the last handle that truncated the file may be about to be released. */
  get isClosing(): boolean {
    const slot = this.isActive ? this.lastSlot() : -1
    return slot >= 0 && this.closingFor(slot) > 0
  }

  /** Call this before reading the disk for a request. */
  noteRead(): void {
    if (!this.isActive) return
    for (let slot = 0; slot < SLOTS; slot++) {
      const at = this.slotAt(slot)
      if (Atomics.load(this.words, at + HANDLE) === 0) continue
      const flags = Atomics.or(this.words, at + FLAGS, READ)
      if ((flags & READ) === 0) this.onRead()
    }
  }

  /**
   * Call this before `handle` writes a range: it zeroes the gap that the write skips. Throws what zeroing throws. Returns the
   * place to which the mark goes back if the write fails, for `failed`.
   */
  beforeWrite(handle: number, offset: number, end: number, actions: GapActions): number {
    if (!this.isActive) return offset
    const { start } = this.place
    return this.locked(() => {
      let back = offset
      for (let slot = 0; slot < SLOTS; slot++) {
        const at = this.slotAt(slot)
        const owner = this.words[at + HANDLE]
        if (owner === 0) continue
        if (owner !== handle) this.keep(slot, start + offset, start + end)
        else {
          back = Math.max(offset, this.markAt(slot))
          this.passTo(slot, offset, end, true, actions)
        }
      }
      return back
    })
  }

  /** Makes the file end at `end` for a handle that has truncated. Returns false for any other handle. */
  resize(handle: number, end: number, actions: GapActions): boolean {
    return this.locked(() => {
      const slot = this.slotOf(handle)
      if (slot < 0) return false
      if (end < this.markAt(slot)) this.numbers[slot * SLOT_NUMBERS] = this.place.start + end
      else this.passTo(slot, end, end, false, actions)
      return true
    })
  }

  /** Notes that a write up to `end` has failed: the mark that it moved goes back to `back`. */
  failed(handle: number, back: number, end: number): void {
    if (handle !== 0) Atomics.store(this.words, failedWord(handle), handle)
    if (!this.isActive) return
    this.locked(() => {
      const slot = this.slotOf(handle)
      // Not if a later write has moved the mark on: then only a second try of this write can repair the gap.
      if (slot >= 0 && this.markAt(slot) === end) {
        this.numbers[slot * SLOT_NUMBERS] = this.place.start + back
      }
    })
  }

  succeeded(handle: number): void {
    const word = failedWord(handle)
    if (Atomics.load(this.words, word) === handle) Atomics.store(this.words, word, 0)
  }

  /**
   * Reports whether the last write of `handle` failed. After a failed direct write the kernel itself sends an ftruncate to the
   * size that it believes in (fuse_direct_IO); the program has not asked for that.
   */
  hasFailed(handle: number): boolean {
    return Atomics.load(this.words, failedWord(handle)) === handle
  }

  /** Zeroes from the mark to `offset` and moves the mark to `end`. The caller holds the lock. */
  private passTo(
    slot: number,
    offset: number,
    end: number,
    isWrite: boolean,
    actions: GapActions,
  ): void {
    const at = this.slotAt(slot)
    Atomics.and(this.words, at + FLAGS, ~(FLUSHED | EMPTIED))
    const mark = this.markAt(slot)
    if (offset > mark) {
      if (((this.words[at + FLAGS] as number) & CROWDED) !== 0)
        throw new SystemError('write', EBUSY)
      this.zeroBetween(slot, mark, offset, actions)
      const hasPages = (Atomics.load(this.words, at + FLAGS) & READ) !== 0
      if (hasPages) dropBetween(mark, offset, isWrite, actions)
    }
    if (end > mark) {
      this.numbers[slot * SLOT_NUMBERS] = this.place.start + end
      this.forgetBelow(slot, this.place.start + end)
    }
  }

  private zeroBetween(slot: number, from: number, to: number, actions: GapActions): void {
    const { numbers } = this
    const count = this.words[this.slotAt(slot) + RANGE_COUNT] as number
    const first = slot * SLOT_NUMBERS + FIRST_RANGE
    let done = from
    for (let i = 0; i < count && done < to; i++) {
      const start = (numbers[first + 2 * i] as number) - this.place.start
      if (start >= to) break
      if (start > done) actions.zero(done, start - done)
      done = Math.max(done, (numbers[first + 2 * i + 1] as number) - this.place.start)
    }
    if (done < to) actions.zero(done, to - done)
  }

  /** Rule (2): remembers what another handle writes past the mark of `slot`. */
  private keep(slot: number, offset: number, to: number): void {
    const { numbers, words } = this
    const at = this.slotAt(slot)
    const from = Math.max(offset, numbers[slot * SLOT_NUMBERS] as number)
    const end = Math.min(to, numbers[slot * SLOT_NUMBERS + END] as number)
    if (end <= from) return
    const first = slot * SLOT_NUMBERS + FIRST_RANGE
    const count = words[at + RANGE_COUNT] as number
    // The ranges are in order and do not touch; those from `low` to `high` touch the new one.
    const low = this.firstEndingAt(first, count, from)
    let high = low
    let start = from
    let stop = end
    while (high < count && (numbers[first + 2 * high] as number) <= end) {
      start = Math.min(start, numbers[first + 2 * high] as number)
      stop = Math.max(stop, numbers[first + 2 * high + 1] as number)
      high++
    }
    if (low === high && count === RANGES) {
      Atomics.or(words, at + FLAGS, CROWDED)
      return
    }
    numbers.copyWithin(first + 2 * (low + 1), first + 2 * high, first + 2 * count)
    numbers[first + 2 * low] = start
    numbers[first + 2 * low + 1] = stop
    words[at + RANGE_COUNT] = count + 1 - (high - low)
  }

  /** Returns the index of the first range that ends at `offset` or later. */
  private firstEndingAt(first: number, count: number, offset: number): number {
    let low = 0
    let high = count
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((this.numbers[first + 2 * middle + 1] as number) < offset) low = middle + 1
      else high = middle
    }
    return low
  }

  private forgetBelow(slot: number, mark: number): void {
    const { numbers, words } = this
    const word = this.slotAt(slot) + RANGE_COUNT
    const count = words[word] as number
    if (count === 0) return
    const first = slot * SLOT_NUMBERS + FIRST_RANGE
    const gone = this.firstEndingAt(first, count, mark + 1)
    numbers.copyWithin(first, first + 2 * gone, first + 2 * count)
    words[word] = count - gone
    if (count > gone) numbers[first] = Math.max(numbers[first] as number, mark)
  }

  /** Returns the slot of a handle that has truncated; -1 for any other. */
  private slotOf(handle: number): number {
    return handle === 0 ? -1 : this.slotWith(handle)
  }

  /** Returns the first slot of a handle, or the first free one for 0; -1 if there is none. */
  private slotWith(handle: number): number {
    for (let slot = 0; slot < SLOTS; slot++) {
      if (Atomics.load(this.words, this.slotAt(slot) + HANDLE) === handle) return slot
    }
    return -1
  }

  private lastSlot(): number {
    let last = -1
    for (let slot = 0; slot < SLOTS; slot++) {
      const at = this.slotAt(slot)
      if (Atomics.load(this.words, at + HANDLE) === 0) continue
      if (this.words[at + FILE] !== this.place.file) continue
      if (last < 0 || ((this.orderOf(slot) - this.orderOf(last)) | 0) > 0) last = slot
    }
    return last
  }

  private orderOf(slot: number): number {
    return Atomics.load(this.words, this.slotAt(slot) + ORDER)
  }

  /** Returns how many milliseconds longer a slot may be about to be released. */
  private closingFor(slot: number): number {
    if ((Atomics.load(this.words, this.slotAt(slot) + FLAGS) & FLUSHED) === 0) return 0
    return (this.numbers[slot * SLOT_NUMBERS + CLOSED_AT] as number) + RELEASE_MS - now()
  }

  private slotAt(slot: number): number {
    return HEAD_WORDS + slot * SLOT_WORDS
  }

  private locked<T>(act: () => T): T {
    return withLock(this.words, LOCK, act)
  }
}

const failedWord = (handle: number): number => FAILED + (handle % FAILED_WORDS)

/** Returns milliseconds of a monotonic clock that all threads share. */
function now(): number {
  const [seconds, nanoseconds] = process.hrtime()
  return seconds * 1000 + nanoseconds / 1e6
}
