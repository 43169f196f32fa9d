/**
 * Makes a qcow2 disk larger, or its size what it was (QEMU docs/interop/qcow2.rst, "Header").
 *
 *  (1) A larger L1 table is counted and on the disk before the header names it. Only then is the old one freed.
 *  (2) The header says the new size last (`keepSize`), after the part past the old end was zeroed and flushed. Until then the
 *      size is only in the memory that the threads share. A raw data file is zeroed itself, so both ways of reading it agree.
 *
 * The caller holds the exclusive side of the disk's lock, and no flush runs.
 */
import { ImageError, orEndWriting } from '../../../errors.js'
import { fillZeros } from '../../filling.js'
import { MAX_L1_BYTES } from '../../limits.js'
import { holdBitmaps } from '../bitmap-store.js'
import { KIND } from '../metadata-map.js'
import { writeDiskSize, writeL1 } from '../header-update.js'
import { STATE } from '../write-memory.js'
import type { Features } from './features.js'
import type { Flushing } from './flushing.js'
import { stateOf, type WriteContext } from './parts.js'

export class Growth {
  /** @param keepsRaw whether programs read the external data file directly */
  constructor(
    private readonly context: WriteContext,
    private readonly features: Features,
    private readonly flushing: Flushing,
    private readonly keepsRaw: boolean,
  ) {}

  /** Tells the driver the size and the L1 table that another thread, or this one, has set. */
  refresh(): void {
    const { context } = this
    const offset = stateOf(context, STATE.l1Offset)
    const entries = stateOf(context, STATE.l1Entries)
    context.driver.moveTo({ offset, entries }, stateOf(context, STATE.sizeBytes))
  }

  /** Throws ImageError if the disk cannot have `sizeBytes` bytes. Changes nothing. */
  check(sizeBytes: number): void {
    const { driver, header } = this.context
    if (header.version === 2 && header.snapshotCount > 0) {
      throw this.refused('an image of version 2 with snapshots cannot grow')
    }
    if (Math.ceil(sizeBytes / driver.coverage) * 8 > MAX_L1_BYTES) {
      throw this.refused(`a disk of ${sizeBytes} bytes is too large for its clusters`)
    }
  }

  grow(sizeBytes: number): void {
    const { driver, memory, dataStore, store, state } = this.context
    const entries = Math.ceil(sizeBytes / driver.coverage)
    holdBitmaps(store, memory.bitmaps, 'resize', () => this.features.write(true))
    if (entries > stateOf(this.context, STATE.l1Entries)) this.growL1(entries)
    if (this.keepsRaw) this.zeroDataFile(sizeBytes)
    if (driver.external && dataStore.sizeBytes < sizeBytes) dataStore.truncate(sizeBytes)
    state[STATE.sizeBytes] = sizeBytes
    this.refresh()
  }

  /** Zeroes what a raw data file has past the disk's end, up to `end`: the tables say that it is zeros. */
  private zeroDataFile(end: number): void {
    const { dataStore } = this.context
    const from = stateOf(this.context, STATE.sizeBytes)
    const length = Math.min(end, dataStore.sizeBytes) - from
    if (length <= 0) return
    if (!dataStore.punch(from, length)) fillZeros(dataStore, from, length)
    dataStore.sync()
  }

  /** Writes the current size to the header. Rule (2). */
  keepSize(): void {
    const { store, driver } = this.context
    orEndWriting(() => {
      writeDiskSize(store, driver.sizeBytes)
      this.flushing.sync()
    })
  }

  /** Moves the L1 table to a larger place. Rule (1). */
  private growL1(entries: number): void {
    const { driver, store, state, refcounts, pool, metadataMap, freed } = this.context
    const { unitBytes } = driver
    const oldOffset = stateOf(this.context, STATE.l1Offset)
    const oldEntries = stateOf(this.context, STATE.l1Entries)
    const clusters = Math.ceil((entries * 8) / unitBytes)
    const run = refcounts.allocateRun(clusters)
    try {
      const table = Buffer.alloc(clusters * unitBytes)
      for (let i = 0; i < oldEntries; i++) {
        const slice = driver.l1Slice(i)
        const at = (i * 8) % driver.sliceBytes
        slice.copy(table, i * 8, at, at + 8)
      }
      const offset = run.cluster * unitBytes
      pool.forget(offset, table.length)
      store.write(table, 0, table.length, offset)
      this.flushing.flush()
    } catch (error) {
      refcounts.cancel(run)
      throw error
    }
    orEndWriting(() => {
      writeL1(store, entries, run.cluster * unitBytes)
      store.sync()
    })
    const oldClusters = Math.ceil((oldEntries * 8) / unitBytes)
    pool.forget(oldOffset, oldClusters * unitBytes)
    metadataMap.change(oldOffset / unitBytes, oldClusters, 0)
    metadataMap.change(run.cluster, clusters, KIND.l1)
    if (oldClusters > 0) freed.put(oldOffset / unitBytes, oldClusters)
    state[STATE.l1Offset] = run.cluster * unitBytes
    state[STATE.l1Entries] = entries
    this.refresh()
  }

  private refused(message: string): ImageError {
    return new ImageError('REFUSED', message, { path: this.context.store.path })
  }
}
