/**
 * Writes a qcow disk (QEMU block/qcow.c). The format has no reference counts, and no flag for an image that is being written.
 *
 *  (1) Clusters and L2 tables are appended to the file and never given back. A range that reads as zeros again is a hole of
 *      the file. So the space past the end of the file belongs to nobody and reads as zeros.
 *  (2) A cluster is whole on the disk before an L2 entry names it; a table, all zeros, is before the L1 table names it.
 *      Compressed clusters are never overwritten: a new cluster replaces them.
 *  (3) A table has its space on the file system before a write that changes it returns: otherwise a flush that finds the file
 *      system full would lose many writes that had succeeded.
 *  (4) Before the first write all tables are inspected (inspection.ts): each cluster belongs to one entry, lies in the file,
 *      and overlaps no table.
 *
 * On an encrypted disk a hole does not decrypt to zeros, so there rule (1) gives no zeros.
 */
import { SLICE_BYTES } from '../../cache/table-pool.js'
import type { DirtySlice } from '../../cache/table-pool.js'
import { ImageError } from '../../errors.js'
import { holesReadAsZeros } from '../../io/store.js'
import { appending, cutBack, endAppended, requireReachable } from '../appending.js'
import type { Extent } from '../driver.js'
import { PooledWriter, TABLES } from '../pooled-writer.js'
import { preallocate } from '../preallocate.js'
import type { TableWriterParts } from '../table-writer.js'
import type { InPlace, Reservation, WritableDriver } from '../writable.js'
import type { QcowDriver } from './driver.js'
import { ENTRY_BYTES, type QcowHeader } from './header.js'
import { inspectTables } from './inspection.js'
import { PACKED, PARENT, readEntry, writeWord } from './words.js'

export type QcowWriterParts = TableWriterParts<QcowHeader, QcowDriver>

/** The block size for punching: file systems punch only whole blocks. */
const BLOCK_BYTES = 4096
/** The most bytes of clusters of one reservation. */
const MAX_RUN_BYTES = 2 ** 21
/** The most slices that one step changes: those of 2 MiB of the smallest clusters, and one of the L1 table. */
const STEP_SLICES = 16

/** A part of a table. */
interface Slice {
  readonly at: number
  readonly length: number
}

interface QcowReservation extends Reservation {
  /** The L1 entry that maps it, the first entry in that table, and the number of entries. */
  readonly table: number
  readonly first: number
  readonly clusters: number
}

export class QcowWriter extends PooledWriter implements WritableDriver {
  readonly sizeBytes: number
  readonly unitBytes: number
  readonly fillBytes: number
  readonly zeroUnitBytes: number
  readonly detectsZeros: boolean

  constructor(private readonly parts: QcowWriterParts) {
    super('qcow', parts)
    const { driver, dataStore } = parts
    this.sizeBytes = driver.sizeBytes
    this.unitBytes = driver.unitBytes
    this.zeroUnitBytes = Math.max(BLOCK_BYTES, driver.unitBytes)
    this.fillBytes = this.zeroUnitBytes
    this.detectsZeros = holesReadAsZeros(dataStore)
  }

  lookup(offset: number, length: number): Extent {
    return this.parts.driver.lookup(offset, length)
  }

  overwritable(offset: number, length: number): InPlace | undefined {
    const { driver, dataStore } = this.parts
    const found = driver.lookup(offset, length)
    if (found.kind !== 'data') return undefined
    return { store: dataStore, at: found.at, length: found.length }
  }

  begin(): void {
    const { store, header } = this.parts
    let usedEnd = 0
    inspectTables(store, header, {
      corruption: (at, message) => {
        const context = { path: store.path, endsWriting: true }
        throw new ImageError('CORRUPT', `at ${at}: ${message()}; see vimgfs check`, context)
      },
      // The missing part of the last cluster, and a table at the end of the file, read as zeros. They must still do so after
      // something is appended.
      totals: ({ endBytes }) => {
        usedEnd = endBytes
      },
    })
    if (usedEnd > store.sizeBytes) store.truncate(usedEnd)
  }

  hasCapacity(): boolean {
    return this.parts.pool.hasCapacity(STEP_SLICES)
  }

  reserve(offset: number, length: number): Reservation {
    const { driver, store, dataStore } = this.parts
    const { unitBytes } = this
    const table = Math.floor(offset / driver.coverage)
    const place = this.ownTable(table, offset)
    const inCluster = offset % unitBytes
    const first = Math.floor((offset - table * driver.coverage) / unitBytes)
    const wanted = Math.min(inCluster + length, MAX_RUN_BYTES)
    const clusters = this.dataless(place, first, Math.ceil(wanted / unitBytes))
    this.preallocateEntries(place, first, clusters)
    const at = Math.ceil(store.sizeBytes / unitBytes) * unitBytes
    requireReachable(store, at + clusters * unitBytes, Number.MAX_SAFE_INTEGER)
    const start = offset - inCluster
    const reservation: QcowReservation = {
      offset: start,
      length: Math.min(clusters * unitBytes, this.sizeBytes - start),
      store: dataStore,
      at,
      isZeroed: holesReadAsZeros(dataStore), // rule (1)
      table,
      first,
      clusters,
    }
    return reservation
  }

  link(reservation: Reservation): void {
    const { store } = this.parts
    const { table, first, clusters, at } = reservation as QcowReservation
    const end = at + clusters * this.unitBytes
    endAppended(store, at, end)
    const place = this.parts.driver.l2Table(table)
    this.setEntries(place, first, clusters, i => at + i * this.unitBytes)
  }

  cancel({ at }: Reservation): void {
    cutBack(this.parts.store, at)
  }

  zeroUnits(offset: number, length: number): number {
    const { dataStore, hasParent } = this.parts
    let done = 0
    while (done < length) {
      const found = this.lookup(offset + done, length - done)
      if (found.kind === 'data') {
        if (!dataStore.punch(found.at, found.length)) break
      } else if (found.kind === 'packed' || (found.kind === 'parent' && hasParent)) {
        // Each such piece takes room in the pool, so handle one in a step.
        return done > 0 ? done : this.zeroDataless(offset, length, found.kind)
      }
      done += found.length
    }
    return done
  }

  /** Does what `zeroUnits` does for whole clusters from `offset` on without data in the file. */
  private zeroDataless(offset: number, length: number, kind: 'packed' | 'parent'): number {
    const { hasParent, dataStore } = this.parts
    if (hasParent && !holesReadAsZeros(dataStore)) return 0
    if (!hasParent && kind === 'packed') return this.forgetPacked(offset, length)
    // Reserve clusters and write nothing to them.
    const reservation = this.reserve(offset, length)
    this.link(reservation)
    return Math.min(reservation.length, length)
  }

  /** Makes compressed clusters unallocated. There is no backing file. */
  private forgetPacked(offset: number, length: number): number {
    const { driver } = this.parts
    const { unitBytes } = this
    const table = Math.floor(offset / driver.coverage)
    const place = driver.l2Table(table)
    const first = Math.floor((offset - table * driver.coverage) / unitBytes)
    const wanted = Math.ceil(Math.min(length, MAX_RUN_BYTES) / unitBytes)
    const clusters = this.dataless(place, first, wanted)
    this.preallocateEntries(place, first, clusters)
    this.setEntries(place, first, clusters, () => 0)
    return Math.min(clusters * unitBytes, length)
  }

  /** Returns how many entries from `first` on name no data cluster; at least 1, at most `wanted`. */
  private dataless(place: number, first: number, wanted: number): number {
    const { driver } = this.parts
    const most = Math.min(wanted, driver.tableBytes / ENTRY_BYTES - first)
    for (let count = 1; ; ) {
      if (count >= most) return most
      const slice = driver.l2SliceOf(place, first + count)
      const bytes = this.read(slice)
      let at = ((first + count) * ENTRY_BYTES) % SLICE_BYTES
      for (; count < most && at < slice.length; count++, at += ENTRY_BYTES) {
        const entry = readEntry(bytes, at, Number.POSITIVE_INFINITY)
        if (entry !== PARENT && entry !== PACKED) return count
      }
    }
  }

  /** Returns the place of the table of an L1 entry. Makes it if there is none. */
  private ownTable(index: number, _offset: number): number {
    const { driver } = this.parts
    const table = driver.l2Table(index)
    if (table !== 0) return table
    this.addTable(index)
    return driver.l2Table(index)
  }

  /** Appends a new table, all zeros, to the file. */
  private addTable(index: number): void {
    const { store, driver, pool, header } = this.parts
    const { tableBytes } = driver
    const at = Math.ceil(store.sizeBytes / this.unitBytes) * this.unitBytes
    requireReachable(store, at + tableBytes, Number.MAX_SAFE_INTEGER)
    const slice = driver.l1SliceOf(index)
    this.preallocateSlice(slice)
    appending(store, () => store.write(Buffer.alloc(tableBytes), 0, tableBytes, at), at)
    pool.forget(at, tableBytes)
    const entryAt = header.l1Offset + index * ENTRY_BYTES
    writeWord(this.edit(slice), entryAt - slice.at, at)
  }

  /** Applies rule (3) to entries of a table. */
  private preallocateEntries(place: number, first: number, count: number): void {
    const { driver } = this.parts
    for (let index = first; index < first + count; index += SLICE_BYTES / ENTRY_BYTES) {
      this.preallocateSlice(driver.l2SliceOf(place, index))
    }
    this.preallocateSlice(driver.l2SliceOf(place, first + count - 1))
  }

  /** Applies rule (3). A slice that is in the pool has its space already. */
  private preallocateSlice({ at, length }: Slice): void {
    const { store, pool } = this.parts
    if (pool.find(at) !== undefined) return
    preallocate(store, at, length)
  }

  private setEntries(
    place: number,
    first: number,
    count: number,
    valueOf: (i: number) => number,
  ): void {
    for (let i = 0; i < count; ) {
      const slice = this.parts.driver.l2SliceOf(place, first + i)
      const bytes = this.edit(slice)
      let at = ((first + i) * ENTRY_BYTES) % SLICE_BYTES
      for (; i < count && at < slice.length; i++, at += ENTRY_BYTES) {
        writeWord(bytes, at, valueOf(i))
      }
    }
  }

  private read({ at, length }: Slice): Buffer {
    const { metadata, store, storeId } = this.parts
    return metadata.slice(store, storeId, at, length)
  }

  private edit(slice: Slice): Buffer {
    const load = () => this.read(slice).subarray(0, slice.length)
    return this.parts.pool.edit(slice.at, TABLES, load)
  }

  protected override writeSlice({ at, bytes }: DirtySlice): void {
    this.parts.store.write(bytes, 0, bytes.length, at)
  }
}
