/**
 * Unused space of an image's file that can be given back. Space at the end of the file can be cut off. Elsewhere, whole blocks
 * of the file system can become holes. Existing holes take no space.
 */
import type { Store, WritableStore } from '../../io/store.js'

/** The block size of most file systems, in bytes; a smaller hole frees nothing. */
export const BLOCK_BYTES = 4096

/**
 * Returns how many of the `bytes` unused bytes at `at` can be given back.
 * @param isTail whether they can be cut off; by default they can if nothing of the file follows them
 */
export function reclaimable(
  store: Store,
  at: number,
  bytes: number,
  isTail = at + bytes >= store.sizeBytes,
): number {
  const end = at + bytes
  const data = new DataRanges(store)
  if (isTail) return data.bytesIn(at, end)
  return data.bytesIn(
    Math.ceil(at / BLOCK_BYTES) * BLOCK_BYTES,
    Math.floor(end / BLOCK_BYTES) * BLOCK_BYTES,
  )
}

/** Tells data of a file from its holes. It is fastest if it is asked in the order of the file. */
export class DataRanges {
  /** The last range that was found in the file, from `start` up to `end`. */
  private start = 0
  private end = 0
  private isData = false

  constructor(private readonly store: Store) {}

  /** Returns how many bytes from `from` up to `to` are not holes. */
  bytesIn(from: number, to: number): number {
    let found = 0
    for (let at = from; at < to; at = this.end) {
      if (at < this.start || at >= this.end) this.look(at)
      if (this.isData) found += Math.min(to, this.end) - at
    }
    return found
  }

  private look(at: number): void {
    const data = this.store.nextData(at)
    this.start = at
    this.isData = data === at
    if (this.isData) this.end = Math.max(at + 1, this.store.nextHole(at))
    else this.end = data < 0 ? Number.POSITIVE_INFINITY : data
  }
}

/** Gives back unused space, and notes what it did. Call `finish` at the end. */
export class Reclaiming {
  private isChanged = false
  private end: number

  constructor(
    private readonly store: WritableStore,
    private readonly note: (kind: 'fix' | 'error', at: number, message: () => string) => void,
  ) {
    this.end = store.sizeBytes
  }

  /** Gives back `bytes` unused bytes at `at`, as far as that frees any. See `reclaimable`. */
  add(at: number, bytes: number, isTail = at + bytes >= this.store.sizeBytes): void {
    if (reclaimable(this.store, at, bytes, isTail) === 0) return
    if (isTail) this.end = at
    else this.punch(at, bytes, bytes)
  }

  /** Makes a hole of `bytes` bytes. @param unused how many bytes of it took space */
  punch(at: number, bytes: number, unused: number): void {
    if (this.store.punch(at, bytes)) {
      this.isChanged = true
      this.note('fix', at, () => `${unused} bytes that nothing uses are a hole`)
    } else {
      const problem = `${unused} bytes that nothing uses stay: the file system makes no holes`
      this.note('error', at, () => problem)
    }
  }

  /** Cuts off the end of the file, and syncs the file if it has changed. Throws SystemError. */
  finish(): void {
    const { store, end } = this
    const bytes = store.sizeBytes - end
    if (bytes > 0) {
      store.truncate(end)
      this.isChanged = true
      this.note('fix', end, () => `${bytes} bytes that nothing uses are cut off`)
    }
    if (this.isChanged) store.sync()
  }
}
