/** Reads a table whose entries have different lengths. */
import type { Store } from '../../io/store.js'

const CHUNK_BYTES = 64 * 1024

/** Reads pieces of a table in ascending order, through a buffer: a thousand entries take a few reads. */
export class TableReader {
  private chunk = Buffer.alloc(0)
  private chunkAt = 0

  /** @param start where the table begins in the file */
  constructor(
    private readonly store: Store,
    private readonly start: number,
  ) {}

  /** Returns `length` bytes at `at` of the table, valid until the next call; undefined if the file ends before that. */
  read(at: number, length: number): Buffer | undefined {
    if (at < this.chunkAt || at + length > this.chunkAt + this.chunk.length) {
      const chunk = Buffer.alloc(Math.max(CHUNK_BYTES, length))
      const got = this.store.read(chunk, 0, chunk.length, this.start + at)
      this.chunk = chunk.subarray(0, got)
      this.chunkAt = at
    }
    const from = at - this.chunkAt
    return from + length <= this.chunk.length ? this.chunk.subarray(from, from + length) : undefined
  }
}
