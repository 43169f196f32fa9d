/**
 * How often each file of a mount is open, in memory that all threads share: a file that somebody has open must not be deleted
 * or changed under him. RELEASE comes once for each OPEN, when the last descriptor and the last map have gone.
 */

const STALE = 0
const OVERRUN = 1
const HEAD = 2
/** Files whose numbers differ by a multiple of this share a count, so a file may seem to be open that is not. */
const COUNTS = 2 ** 16

/** How a handle writes. One that does not is only counted, and so is one that writes through the page cache at once. */
export const READS = 0
export const WRITES_PAST_CACHE = 1
export const WRITES_TO_CACHE = 2

export class OpenCounts {
  private readonly counts: Int32Array

  constructor(readonly shared = new SharedArrayBuffer(4 * (HEAD + 3 * COUNTS))) {
    this.counts = new Int32Array(shared)
  }

  /** Whether the kernel may still have pages of files whose bytes have changed since. An opening then makes it drop them. */
  get hasStalePages(): boolean {
    return Atomics.load(this.counts, STALE) !== 0
  }

  set hasStalePages(isStale: boolean) {
    Atomics.store(this.counts, STALE, isStale ? 1 : 0)
  }

  /** Whether the kernel believes a file to be longer than it is: a write past its end came from the page cache. */
  get isOverrun(): boolean {
    return Atomics.load(this.counts, OVERRUN) !== 0
  }

  set isOverrun(isOverrun: boolean) {
    Atomics.store(this.counts, OVERRUN, isOverrun ? 1 : 0)
  }

  /** @param writing READS, WRITES_PAST_CACHE or WRITES_TO_CACHE */
  opened(id: number, writing = READS): void {
    Atomics.add(this.counts, wordOf(id, READS), 1)
    if (writing !== READS) Atomics.add(this.counts, wordOf(id, writing), 1)
  }

  released(id: number, writing = READS): void {
    Atomics.sub(this.counts, wordOf(id, READS), 1)
    if (writing === READS) return
    Atomics.sub(this.counts, wordOf(id, writing), 1)
    if (writing === WRITES_TO_CACHE) Atomics.notify(this.counts, wordOf(id, writing))
  }

  hasWriterPastCache(id: number): boolean {
    return Atomics.load(this.counts, wordOf(id, WRITES_PAST_CACHE)) > 0
  }

  hasWriterToCache(id: number): boolean {
    return Atomics.load(this.counts, wordOf(id, WRITES_TO_CACHE)) > 0
  }

  /**
   * Waits until no such handle is open. Returns false if one is after `milliseconds`: the kernel reports a close only after close(2)
   * has returned, and another thread may serve that.
   */
  isFreeOfWritersToCache(id: number, milliseconds: number): boolean {
    const word = wordOf(id, WRITES_TO_CACHE)
    const deadline = performance.now() + milliseconds
    for (;;) {
      const count = Atomics.load(this.counts, word)
      const left = deadline - performance.now()
      if (count <= 0 || left <= 0) return count <= 0
      Atomics.wait(this.counts, word, count, left)
    }
  }

  isOpen(id: number): boolean {
    return Atomics.load(this.counts, wordOf(id, READS)) > 0
  }
}

const wordOf = (id: number, writing: number): number => HEAD + writing * COUNTS + (id % COUNTS)
