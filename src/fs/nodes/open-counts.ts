/**
 * How often each file of a mount is open, in memory that all threads share: a file that somebody has open must not be deleted
 * or changed under him. RELEASE comes once for each OPEN, when the last descriptor and the last map have gone.
 */

const STALE = 0
const HEAD = 1
/** Files whose numbers differ by a multiple of this share a count, so a file may seem to be open that is not. */
const COUNTS = 2 ** 16

export class OpenCounts {
  private readonly counts: Int32Array

  constructor(readonly shared = new SharedArrayBuffer(4 * (HEAD + 2 * COUNTS))) {
    this.counts = new Int32Array(shared)
  }

  /** Whether the kernel may still have pages of files whose bytes have changed since. An opening then makes it drop them. */
  get hasStalePages(): boolean {
    return Atomics.load(this.counts, STALE) !== 0
  }

  set hasStalePages(isStale: boolean) {
    Atomics.store(this.counts, STALE, isStale ? 1 : 0)
  }

  /** @param isPastCache whether it is open for writing past the page cache */
  opened(id: number, isPastCache = false): void {
    Atomics.add(this.counts, HEAD + (id % COUNTS), 1)
    if (isPastCache) Atomics.add(this.counts, HEAD + COUNTS + (id % COUNTS), 1)
  }

  released(id: number, isPastCache = false): void {
    Atomics.sub(this.counts, HEAD + (id % COUNTS), 1)
    if (isPastCache) Atomics.sub(this.counts, HEAD + COUNTS + (id % COUNTS), 1)
  }

  hasWriterPastCache(id: number): boolean {
    return Atomics.load(this.counts, HEAD + COUNTS + (id % COUNTS)) > 0
  }

  isOpen(id: number): boolean {
    return Atomics.load(this.counts, HEAD + (id % COUNTS)) > 0
  }
}
