/**
 * Flushes a qcow2 disk. The rules are those of writer.ts:
 *
 *  (1) Each stage is on the disk before the next one is written: data and counts, then the refcount table, then L1 and L2
 *      entries.
 *  (3) A count goes down, and a cluster is punched or used again, only after the flush that removed the last entry. The lower
 *      counts reach the file with the next flush.
 *  (4) A changed slice is written only where the metadata map has a table of its kind.
 *
 * The caller holds the exclusive side of the disk's lock, except while `Flush.run` runs.
 */
import type { DirtySlice } from '../../../cache/table-pool.js'
import { orEndWriting } from '../../../errors.js'
import type { Flush } from '../../writable.js'
import { KIND } from '../metadata-map.js'
import { damage, STEP_SLICES, type WriteContext } from './parts.js'
import { STAGE, STAGES } from './stages.js'

export class Flushing {
  private readonly unitBytes: number

  constructor(private readonly context: WriteContext) {
    this.unitBytes = context.driver.unitBytes
  }

  /** Takes a snapshot of the changes that the next flush will write. */
  collect(): Flush {
    const { pool, freed } = this.context
    const slices = pool.collect()
    for (const { at, stage } of slices) this.checkPlace(at, stage)
    const freedUntil = freed.end
    let hasMore = false
    return {
      run: () => this.writeSlices(slices),
      settle: () => {
        pool.flushed(slices)
        this.giveBack(freedUntil)
        hasMore = !freed.isEmpty || pool.dirty > 0
      },
      get hasMore() {
        return hasMore
      },
    }
  }

  /** Makes a whole flush. */
  flush(): void {
    const flush = this.collect()
    flush.run()
    flush.settle()
  }

  /** Flushes until nothing is changed, and nothing that was freed is left. */
  flushAll(): void {
    const { freed, pool } = this.context
    while (!freed.isEmpty || pool.dirty > 0) this.flush()
  }

  /** Syncs the data file first, if there is one. */
  sync(): void {
    const { store, dataStore, driver } = this.context
    orEndWriting(() => {
      if (driver.external) dataStore.sync()
      store.sync()
    })
  }

  /** Rule (1). */
  private writeSlices(slices: readonly DirtySlice[]): void {
    const { store } = this.context
    for (let stage = 0; stage < STAGES; stage++) {
      const due = slices.filter(slice => slice.stage === stage)
      for (const { at, bytes } of due) store.write(bytes, 0, bytes.length, at)
      // The first sync is also for the data.
      if (stage === 0 || due.length > 0) this.sync()
    }
  }

  /** Rule (4). */
  private checkPlace(at: number, stage: number): void {
    const kind = this.context.metadataMap.kindOf(Math.floor(at / this.unitBytes))
    const isRight =
      stage === STAGE.links
        ? kind === KIND.l1 || kind === KIND.l2
        : kind === (stage === STAGE.refcounts ? KIND.refcountBlock : KIND.refcountTable)
    if (isRight) return
    const what = `a table was to be written to ${at}, where the image has something else`
    throw damage(this.context, what)
  }

  /** Counts down the clusters that were freed before this flush, as far as the pool has room. Rule (3). */
  private giveBack(freedUntil: number): void {
    const { store, pool, freed: queue, metadataMap, refcounts } = this.context
    let start = 0
    let end = 0
    const punch = () => {
      if (end > start) store.punch(start * this.unitBytes, (end - start) * this.unitBytes)
    }
    while (pool.hasCapacity(STEP_SLICES)) {
      const freed = queue.take(freedUntil)
      if (!freed) break
      for (let c = freed.cluster; c < freed.cluster + freed.clusters; c++) {
        // A table that is still in the metadata map is not free, whatever its count says.
        if (metadataMap.kindOf(c) !== 0 && refcounts.count(c) <= 1) continue
        if (!refcounts.release(c)) continue
        if (c !== end) {
          punch()
          start = c
        }
        end = c + 1
      }
    }
    punch()
  }
}
