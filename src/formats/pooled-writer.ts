/** The base of writers whose disks never grow and whose tables all go through the pool. */
import type { DirtySlice, TablePool } from '../cache/table-pool.js'
import { orEndWriting } from '../errors.js'
import type { WritableStore } from '../io/store.js'
import { BaseWriter } from './base-writer.js'
import type { Flush } from './writable.js'

/** The one stage in which the tables of such a writer reach the file. */
export const TABLES = 0

export interface PooledParts {
  readonly store: WritableStore
  readonly pool: TablePool
}

export abstract class PooledWriter extends BaseWriter {
  /** @param format the name of the format for users */
  protected constructor(
    format: string,
    private readonly pooled: PooledParts,
  ) {
    super(format, pooled.store.path)
  }

  /** Syncs what the tables name before it writes the tables. */
  collect(): Flush {
    const { store, pool } = this.pooled
    const slices = pool.collect()
    const run = () => {
      orEndWriting(() => store.sync())
      if (slices.length === 0) return
      for (const slice of slices) this.writeSlice(slice)
      orEndWriting(() => store.sync())
    }
    return { run, settle: () => pool.flushed(slices), hasMore: false }
  }

  protected abstract writeSlice(slice: DirtySlice): void
}
