/**
 * Writes a qcow2 disk (QEMU docs/interop/qcow2.rst). The order of changes to the file is such that a power cut or a kill at
 * any moment leaves the image sound, with leaks at worst:
 *
 *  (1) A cluster is counted and filled, and both are on the disk, before an entry points at it. So a flush has stages: data
 *      and counts, then the refcount table, then L1 and L2 entries (write/flushing.ts).
 *  (2) A new table is whole in the file before its first entry changes.
 *  (3) A count goes down, and a cluster is used again, only after the flush that removed the last entry.
 *  (4) A table is written only where it is known to be, and no cluster is handed out in which another structure lives
 *      (metadata-map.ts).
 *  (5) Entries change in place only under an L1 entry with the COPIED flag. Otherwise the table is copied first. The same
 *      holds for clusters and the flag of their entries (write/mapping.ts).
 *
 * This class decides what happens to each entry. The folder `write` has its parts.
 */
import { holesReadAsZeros } from '../../io/store.js'
import type { Extent } from '../driver.js'
import type { Flush, InPlace, Reservation, WritableDriver } from '../writable.js'
import { holdBitmaps, storeBitmaps } from './bitmap-store.js'
import { BitmapTracker } from './bitmap-tracker.js'
import { FreeQueue } from './free-queue.js'
import { MetadataMap } from './metadata-map.js'
import { AUTOCLEAR } from './header.js'
import { inspectForWriting } from './inspection.js'
import { Refcounts, type ClusterRun } from './refcounts.js'
import { COMPRESSED, COPIED, putEntry, ZERO_FLAG } from './words.js'
import { Features } from './write/features.js'
import { Flushing } from './write/flushing.js'
import { Growth } from './write/growth.js'
import { Mapping, type Place } from './write/mapping.js'
import {
  type Qcow2WriterParts,
  STEP_RECORDS,
  STEP_SLICES,
  type WriteContext,
} from './write/parts.js'
import { ALL_SUBCLUSTERS, Subclusters } from './write/subclusters.js'

/** The most clusters of one reservation. */
const MAX_RUN = 512

/** A reservation of the clusters from a place on; `offset` is the start of the piece. */
interface Qcow2Reservation extends Reservation, Place {
  /** The place of the first cluster in the file. */
  readonly host: number
  readonly clusters: number
  /** The allocated clusters; undefined if the entry's own cluster is used. */
  readonly run: ClusterRun | undefined
  /** The bits of the subclusters that become allocated, for each cluster. */
  readonly subclusters: number
}

export class Qcow2Writer implements WritableDriver {
  readonly unitBytes: number
  readonly fillBytes: number
  readonly zeroUnitBytes: number
  readonly detectsZeros: boolean
  private readonly context: WriteContext
  private readonly keepsRaw: boolean
  private readonly mapping: Mapping
  private readonly subclusters: Subclusters
  private readonly flushing: Flushing
  private readonly features: Features
  private readonly growth: Growth
  private readonly tracker: BitmapTracker

  constructor(parts: Qcow2WriterParts) {
    const { driver, header, memory } = parts
    this.context = contextOf(parts)
    this.unitBytes = driver.unitBytes
    this.fillBytes = driver.unitBytes
    // Do not punch zeros when encrypted: holes would reveal them.
    this.detectsZeros = holesReadAsZeros(parts.dataStore)
    this.keepsRaw = driver.external && (header.autoclear & AUTOCLEAR.rawExternalData) !== 0n
    this.mapping = new Mapping(this.context)
    this.subclusters = new Subclusters(this.context, this.mapping)
    this.zeroUnitBytes = this.subclusters.sizeBytes
    this.flushing = new Flushing(this.context)
    this.features = new Features(parts)
    this.growth = new Growth(this.context, this.features, this.flushing, this.keepsRaw)
    this.tracker = new BitmapTracker(memory.bitmaps)
  }

  get sizeBytes(): number {
    return this.context.driver.sizeBytes
  }

  lookup(offset: number, length: number): Extent {
    return this.context.driver.lookup(offset, length)
  }

  refresh(): void {
    this.growth.refresh()
  }

  begin(): void {
    const { metadataMap, header, store, memory } = this.context
    inspectForWriting(metadataMap, store, header, memory.bitmaps)
    holdBitmaps(store, memory.bitmaps, 'write', () => this.features.write(true))
    this.features.open()
  }

  hasCapacity(): boolean {
    const { pool, freed } = this.context
    return pool.hasCapacity(STEP_SLICES) && freed.hasCapacity(STEP_RECORDS)
  }

  mark(offset: number, length: number): void {
    this.tracker.mark(offset, length)
  }

  overwritable(offset: number, length: number): InPlace | undefined {
    const { mapping } = this
    const { driver, dataStore } = this.context
    const table = mapping.tableOf(offset)
    if (table === 0) return undefined
    const entryAt = Math.floor((offset % driver.coverage) / this.unitBytes) * driver.entryBytes
    let at = entryAt % driver.sliceBytes
    const slice = driver.slice(table + entryAt - at)
    const inCluster = offset % this.unitBytes
    const host = mapping.ownHost(slice, at, offset)
    if (host < 0) return undefined
    let done = this.allocatedIn(slice, at, inCluster, length)
    if (done === 0) return undefined
    while (done < length && (inCluster + done) % this.unitBytes === 0) {
      at += driver.entryBytes
      if (
        at === slice.length ||
        mapping.ownHost(slice, at, offset + done) !== host + inCluster + done
      ) {
        break
      }
      const more = this.allocatedIn(slice, at, 0, length - done)
      if (more === 0) break
      done += more
    }
    return { store: dataStore, at: host + inCluster, length: done }
  }

  /** Returns how many bytes from `inCluster` on are data, up to the cluster's end and `length`. */
  private allocatedIn(slice: Buffer, at: number, inCluster: number, length: number): number {
    const rest = Math.min(length, this.unitBytes - inCluster)
    if (this.context.driver.extended) {
      return this.subclusters.dataBytes(slice, at, inCluster, rest)
    }
    return slice.readUInt32BE(at + 4) & ZERO_FLAG ? 0 : rest
  }

  reserve(offset: number, length: number): Reservation {
    const { mapping, subclusters } = this
    const { driver } = this.context
    const place = mapping.ownPlace(offset)
    const { inSlice } = place
    // Reserve the table's space before anything is written where it will point.
    const slice = mapping.edit(place.sliceAt)
    const inCluster = offset % this.unitBytes
    const host = mapping.ownHost(slice, inSlice, offset)
    if (host >= 0) return this.reserveInOwn(slice, place, inCluster, length, host)

    // All subclusters of the old cluster move to the new one, and those of the parent are copied.
    const isPartial = driver.extended && subclusters.holdsNothing(slice, inSlice)
    const isWhole = inCluster === 0 && length >= this.unitBytes
    if (isPartial && !isWhole) return this.reservePart(place, inCluster, length)
    const wanted = Math.min(
      Math.ceil((inCluster + length) / this.unitBytes),
      (slice.length - inSlice) / driver.entryBytes,
      MAX_RUN,
    )
    let clusters = 1
    while (clusters < wanted && this.needsNew(slice, inSlice, clusters, offset)) clusters++
    // The last cluster may be covered only in part. Then a separate step chooses its subclusters.
    if (driver.extended && clusters > 1) {
      clusters = Math.min(clusters, Math.max(1, Math.floor((inCluster + length) / this.unitBytes)))
    }
    return this.reserveClusters(place, clusters)
  }

  /** Reserves the entry's own cluster, which is marked as zeros or has only some subclusters. */
  private reserveInOwn(
    slice: Buffer,
    place: Place,
    inCluster: number,
    length: number,
    host: number,
  ): Qcow2Reservation {
    if (!this.context.driver.extended) {
      return this.reservation(place, place.offset, this.unitBytes, host, undefined, false)
    }
    const piece = this.subclusters.missing(slice, place.inSlice, inCluster, length)
    return this.reservation(
      place,
      place.offset + piece.start,
      piece.length,
      host,
      undefined,
      false,
      piece.bits,
    )
  }

  /** Reserves a new cluster of which only the written subclusters become allocated. */
  private reservePart(place: Place, inCluster: number, length: number): Qcow2Reservation {
    const piece = this.subclusters.touched(inCluster, length)
    const { host, run, isZeroed } = this.reserveClusters(place, 1)
    return this.reservation(
      place,
      place.offset + piece.start,
      piece.length,
      host,
      run,
      isZeroed,
      piece.bits,
    )
  }

  private reserveClusters(place: Place, clusters: number): Qcow2Reservation {
    const { driver, refcounts, dataStore } = this.context
    const { offset } = place
    if (driver.external) {
      // Every byte of the disk has a fixed place in the data file ("External data files").
      return this.reservation(place, offset, clusters * this.unitBytes, offset, undefined, false)
    }
    const run = refcounts.allocate(clusters)
    const isZeroed = run.isZeroed && holesReadAsZeros(dataStore)
    const host = run.cluster * this.unitBytes
    return this.reservation(place, offset, run.clusters * this.unitBytes, host, run, isZeroed)
  }

  /**
   * Returns a reservation of the piece of `length` bytes at `offset`.
   * @param host the place in the file of the cluster in which the piece begins
   */
  private reservation(
    { sliceAt, inSlice, offset: first }: Place,
    offset: number,
    length: number,
    host: number,
    run: ClusterRun | undefined,
    isZeroed: boolean,
    subclusters = ALL_SUBCLUSTERS,
  ): Qcow2Reservation {
    // Spelled out: to spread objects of so many fields takes longer than to write a page.
    return {
      sliceAt,
      inSlice,
      offset,
      length,
      store: this.context.dataStore,
      at: host + offset - first,
      isZeroed,
      host,
      clusters: Math.ceil(length / this.unitBytes),
      run,
      subclusters,
    }
  }

  private needsNew(slice: Buffer, inSlice: number, index: number, offset: number): boolean {
    const at = inSlice + index * this.context.driver.entryBytes
    const clusterOffset = offset - (offset % this.unitBytes) + index * this.unitBytes
    return this.mapping.ownHost(slice, at, clusterOffset) < 0
  }

  link(reservation: Reservation): void {
    const r = reservation as Qcow2Reservation
    const { mapping } = this
    const { driver } = this.context
    const slice = mapping.edit(r.sliceAt)
    for (let i = 0; i < r.clusters; i++) {
      const at = r.inSlice + i * driver.entryBytes
      const isOwn =
        r.run === undefined && mapping.ownHost(slice, at, r.offset + i * this.unitBytes) >= 0
      const wasPacked = (slice.readUInt32BE(at) & COMPRESSED) !== 0
      if (!isOwn) mapping.release(slice, at)
      putEntry(slice, at, r.host + i * this.unitBytes, COPIED, 0)
      if (driver.extended) this.subclusters.allocate(slice, at, r.subclusters, wasPacked)
    }
  }

  cancel(reservation: Reservation): void {
    const { run } = reservation as Qcow2Reservation
    // Bytes in a raw data file are on the disk at once, so link them also after an error.
    if (this.keepsRaw) this.link(reservation)
    else if (run) this.context.refcounts.cancel(run)
  }

  lookEverywhere(): void {
    this.context.refcounts.lookEverywhere()
  }

  zeroUnits(offset: number, length: number): number {
    const { driver, header, hasParent, dataStore } = this.context
    // A program that reads a raw data file directly must find the zeros there. Such an image has no backing file.
    if (this.keepsRaw) return dataStore.punch(offset, length) ? length : 0
    if (header.version === 2 && hasParent) return 0
    const { sliceAt, inSlice } = this.mapping.ownPlace(offset)
    const slice = this.mapping.edit(sliceAt)
    let done = 0
    for (let at = inSlice; done < length && at < slice.length; at += driver.entryBytes) {
      const from = done === 0 ? offset % this.unitBytes : 0
      const to = Math.min(this.unitBytes, from + length - done)
      const bytes = this.zeroCluster(slice, at, from, to, offset + done)
      if (bytes === 0) break
      done += bytes
    }
    return Math.min(done, length)
  }

  /** Zeroes the bytes `from` to `to` of the cluster of one entry. Returns how many are zeros now. */
  private zeroCluster(slice: Buffer, at: number, from: number, to: number, offset: number): number {
    const { driver, header, dataStore } = this.context
    // The disk may end within its last cluster; the rest of that cluster is unused.
    const isWhole = from === 0 && (to === this.unitBytes || offset + to === this.sizeBytes)
    if (!isWhole) return this.subclusters.zero(slice, at, from, to, offset)
    const high = slice.readUInt32BE(at)
    if (driver.external) {
      const host = driver.checkedHost(high, slice.readUInt32BE(at + 4))
      if (driver.isAllocated(high, offset, host)) dataStore.punch(host, this.unitBytes)
    } else this.mapping.release(slice, at)
    const hasFlag = header.version === 3 && !driver.extended
    putEntry(slice, at, 0, 0, hasFlag ? ZERO_FLAG : 0)
    if (driver.extended) this.subclusters.zeroAll(slice, at)
    return to - from
  }

  collect(): Flush {
    return this.flushing.collect()
  }

  checkGrowth(sizeBytes: number): void {
    this.growth.check(sizeBytes)
  }

  grow(sizeBytes: number): void {
    this.growth.grow(sizeBytes)
  }

  keepSize(): void {
    this.growth.keepSize()
  }

  close(): readonly string[] {
    const { store, memory, refcounts, freed } = this.context
    const space = {
      allocate: (clusters: number) => {
        const { cluster } = refcounts.allocateRun(clusters)
        this.flushing.flush()
        return cluster * this.unitBytes
      },
      free: (at: number, clusters: number) => freed.put(at / this.unitBytes, clusters),
    }
    const warnings = storeBitmaps(store, memory.bitmaps, this.sizeBytes, space)
    this.flushing.flushAll()
    this.features.close()
    return warnings
  }
}

function contextOf(parts: Qcow2WriterParts): WriteContext {
  const { driver, header, store, storeId, metadata, memory, pool } = parts
  const metadataMap = new MetadataMap(memory.metadataMap)
  const freed = new FreeQueue(memory.freed)
  const state = new Float64Array(memory.state)
  const refcounts = new Refcounts({
    store,
    storeId,
    metadata,
    pool,
    metadataMap,
    freed,
    state,
    clusterBytes: driver.unitBytes,
    sliceBytes: driver.sliceBytes,
    refcountOrder: header.refcountOrder,
  })
  return { ...parts, metadataMap, freed, state, refcounts }
}
