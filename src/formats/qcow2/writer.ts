/**
 * Writes a qcow2 disk (QEMU docs/interop/qcow2.rst). The order of changes to the file is such that a power cut or a kill at
 * any moment leaves the image sound, with leaks at worst:
 *
 *  (1) A cluster is counted and filled, and both are on the disk, before an entry points at it. So a flush has stages: data
 *      and counts, then the refcount table, then L1 and L2 entries.
 *  (2) A new table is whole in the file before its first entry changes.
 *  (3) A count goes down, and a cluster is used again, only after the flush that removed the last entry.
 *  (4) A table is written only where it is known to be, and no cluster is handed out in which another structure lives
 *      (guard.ts).
 *  (5) Entries change in place only under an L1 entry with the COPIED flag. Otherwise the table is copied first. The same
 *      holds for clusters and the flag of their entries.
 */
import type { MetadataCache } from '../../cache/metadata-cache.js'
import { type DirtySlice, STAGE, STAGES, type TablePool } from '../../cache/table-pool.js'
import { ImageError, orEndWriting } from '../../errors.js'
import { placed } from '../../io/cipher-store.js'
import type { WritableStore } from '../../io/store.js'
import type { Extent } from '../driver.js'
import { MAX_L1_BYTES } from '../limits.js'
import { withRoom } from '../room.js'
import type { Flush, Reservation, WritableDriver } from '../writable.js'
import { packedAt, type Qcow2Driver, SUBCLUSTERS } from './driver.js'
import { holdBitmaps, storeBitmaps } from './bitmap-store.js'
import { BitmapTracker } from './bitmap-tracker.js'
import { FreeQueue } from './free-queue.js'
import { Guard, KIND } from './guard.js'
import { AUTOCLEAR, COMPATIBLE, INCOMPATIBLE, type Qcow2Header } from './header.js'
import { writeDiskSize, writeFeatures, writeL1 } from './header-update.js'
import { inspectForWriting } from './inspection.js'
import { Refcounts, type Run } from './refcounts.js'
import { COMPRESSED, COPIED, ZERO_FLAG } from './words.js'
import { type Qcow2Memory, STATE } from './write-memory.js'

export interface Qcow2WriterParts {
  readonly header: Qcow2Header
  /** The disk's driver. It reads tables through `metadata`, which asks the pool first. */
  readonly driver: Qcow2Driver
  readonly store: WritableStore
  readonly dataStore: WritableStore
  readonly storeId: number
  readonly metadata: MetadataCache
  readonly pool: TablePool
  readonly memory: Qcow2Memory
  /** Whether there is a layer below. */
  readonly hasParent: boolean
  /** Whether `dataStore` encrypts. */
  readonly isEncrypted: boolean
}

/** The most table slices, and records of freed clusters, that one step changes. */
const STEP_SLICES = 64
const STEP_RECORDS = 2048
/** The most clusters of one reservation. */
const MAX_RUN = 512
const ALL_SUBCLUSTERS = 0xffffffff

/** An L2 entry, and the place on the disk that it maps. */
interface Place {
  /** The place of the L2 table's slice in the file, and of the entry in the slice. */
  readonly sliceAt: number
  readonly inSlice: number
  /** The start of its cluster on the disk. */
  readonly offset: number
}

/** A reservation of the clusters from a place on; `offset` is the start of the piece. */
interface Qcow2Reservation extends Reservation, Place {
  /** The place of the first cluster in the file. */
  readonly host: number
  readonly clusters: number
  /** The allocated clusters; undefined if the entry's own cluster is used. */
  readonly run: Run | undefined
  /** The bits of the subclusters that become allocated, for each cluster. */
  readonly subclusters: number
}

export class Qcow2Writer implements WritableDriver {
  readonly unitBytes: number
  readonly fillBytes: number
  readonly zeroUnitBytes: number
  readonly detectsZeros: boolean
  dataStore: WritableStore
  placeAt = 0
  private readonly pool: TablePool
  private readonly guard: Guard
  private readonly freed: FreeQueue
  private readonly state: Float64Array
  private readonly refcounts: Refcounts
  private readonly subclusterBytes: number
  private readonly keepsRaw: boolean
  private readonly isEncrypted: boolean
  private readonly tracker: BitmapTracker

  constructor(private readonly parts: Qcow2WriterParts) {
    const { driver, header, store, storeId, metadata, memory, pool } = parts
    this.unitBytes = driver.unitBytes
    this.fillBytes = driver.unitBytes
    this.subclusterBytes = driver.extended ? driver.unitBytes / SUBCLUSTERS : driver.unitBytes
    this.zeroUnitBytes = this.subclusterBytes
    this.dataStore = parts.dataStore
    this.isEncrypted = parts.isEncrypted
    // Do not punch zeros when encrypted: holes would reveal them.
    this.detectsZeros = !this.isEncrypted
    this.pool = pool
    this.guard = new Guard(memory.guard)
    this.freed = new FreeQueue(memory.freed)
    this.state = new Float64Array(memory.state)
    this.tracker = new BitmapTracker(memory.bitmaps)
    this.keepsRaw = driver.external && (header.autoclear & AUTOCLEAR.rawExternalData) !== 0n
    this.refcounts = new Refcounts({
      store,
      storeId,
      metadata,
      pool,
      guard: this.guard,
      freed: this.freed,
      state: this.state,
      clusterBytes: driver.unitBytes,
      sliceBytes: driver.sliceBytes,
      refcountOrder: header.refcountOrder,
    })
  }

  get sizeBytes(): number {
    return this.parts.driver.sizeBytes
  }

  lookup(offset: number, length: number): Extent {
    return this.parts.driver.lookup(offset, length)
  }

  refresh(): void {
    const { state } = this
    const l1 = { offset: value(state, STATE.l1Offset), entries: value(state, STATE.l1Entries) }
    this.parts.driver.moveTo(l1, value(state, STATE.sizeBytes))
  }

  begin(): void {
    const { header, store, memory } = this.parts
    inspectForWriting(this.guard, store, header, memory.bitmaps)
    holdBitmaps(store, memory.bitmaps, 'write', () => this.writeFeatures(true))
    if (header.version === 2) return
    if (this.keptAutoclear === header.autoclear && !this.isLazy) return
    this.writeFeatures(true)
    orEndWriting(() => store.sync())
  }

  private get isLazy(): boolean {
    return (this.parts.header.compatible & COMPATIBLE.lazyRefcounts) !== 0n
  }

  /** The autoclear bits to keep: a write breaks the promises of all unknown ones. */
  private get keptAutoclear(): bigint {
    const { header, memory } = this.parts
    const kept = AUTOCLEAR.rawExternalData | (memory.bitmaps.areLost ? 0n : AUTOCLEAR.bitmaps)
    return header.autoclear & kept
  }

  private writeFeatures(isOpen: boolean): void {
    const { header, store } = this.parts
    const { incompatible, compatible } = header
    writeFeatures(store, {
      // Programs that see the dirty bit rebuild the counts before they write.
      incompatible: isOpen && this.isLazy ? incompatible | INCOMPATIBLE.dirty : incompatible,
      compatible,
      autoclear: this.keptAutoclear,
    })
  }

  hasRoom(): boolean {
    return this.pool.hasRoom(STEP_SLICES) && this.freed.hasRoom(STEP_RECORDS)
  }

  mark(offset: number, length: number): void {
    this.tracker.mark(offset, length)
  }

  overwritable(offset: number, length: number): number {
    const { driver } = this.parts
    const l1Index = Math.floor(offset / driver.coverage)
    const table = driver.l2Table(l1Index, offset)
    if (
      table === 0 ||
      !isCopied(driver.l1Slice(l1Index, offset), (l1Index * 8) % driver.sliceBytes)
    ) {
      return 0
    }
    const entryAt = Math.floor((offset % driver.coverage) / this.unitBytes) * driver.entryBytes
    let at = entryAt % driver.sliceBytes
    const slice = driver.slice(table + entryAt - at, offset)
    const inCluster = offset % this.unitBytes
    const host = this.ownHost(slice, at, offset)
    if (host < 0) return 0
    let done = this.allocatedIn(slice, at, inCluster, length, offset)
    if (done === 0) return 0
    this.placeAt = host + inCluster
    this.dataStore = placed(this.parts.dataStore, offset, this.placeAt)
    while (done < length && (inCluster + done) % this.unitBytes === 0) {
      at += driver.entryBytes
      if (
        at === slice.length ||
        this.ownHost(slice, at, offset + done) !== host + inCluster + done
      ) {
        break
      }
      const more = this.allocatedIn(slice, at, 0, length - done, offset + done)
      if (more === 0) break
      done += more
    }
    return done
  }

  /** Returns the cluster of an entry if it is a normal one to which nothing else points; else -1. */
  private ownHost(slice: Buffer, at: number, offset: number): number {
    const { driver } = this.parts
    const high = slice.readUInt32BE(at)
    if (high & COMPRESSED || !(high & COPIED)) return -1
    const low = slice.readUInt32BE(at + 4)
    const host = driver.checkedHost(high, low, offset)
    if (!driver.isAllocated(high, offset, host)) return -1
    if (!driver.external && this.guard.kindOf(host / this.unitBytes) !== 0) {
      const what = `an L2 entry maps the disk to ${host}, where the image has a table`
      throw this.damage(what, offset)
    }
    return host
  }

  /** Returns how many bytes from `inCluster` on are data, up to the cluster's end and `length`. */
  private allocatedIn(
    slice: Buffer,
    at: number,
    inCluster: number,
    length: number,
    offset: number,
  ): number {
    const rest = Math.min(length, this.unitBytes - inCluster)
    if (!this.parts.driver.extended) return slice.readUInt32BE(at + 4) & ZERO_FLAG ? 0 : rest
    const { zeros, allocated } = this.bitmapOf(slice, at, offset)
    if (allocated === ALL_SUBCLUSTERS && zeros === 0) return rest
    let end = inCluster
    while (end < inCluster + rest) {
      const bit = Math.floor(end / this.subclusterBytes)
      if (!((allocated >>> bit) & 1) || (zeros >>> bit) & 1) break
      end = (bit + 1) * this.subclusterBytes
    }
    return Math.min(rest, end - inCluster)
  }

  private bitmapOf(
    slice: Buffer,
    at: number,
    offset: number,
  ): { zeros: number; allocated: number } {
    const zeros = slice.readUInt32BE(at + 8)
    const allocated = slice.readUInt32BE(at + 12)
    if ((zeros & allocated) !== 0) {
      throw this.parts.driver.damage('subclusters are marked both allocated and zero', offset)
    }
    return { zeros, allocated }
  }

  reserve(offset: number, length: number): Reservation {
    const { driver } = this.parts
    const place = this.ownPlace(offset)
    const { inSlice } = place
    // Reserve the table's space before anything is written where it will point.
    const slice = this.editLinks(place.sliceAt, offset)
    const inCluster = offset % this.unitBytes
    const host = this.ownHost(slice, inSlice, offset)
    if (host >= 0) return this.reserveInOwn(slice, place, inCluster, length, host)

    // All subclusters of the old cluster move to the new one, and those of the parent are copied.
    const isPartial = driver.extended && this.holdsNothing(slice, inSlice)
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
    return this.reserveClusters(place, clusters, ALL_SUBCLUSTERS)
  }

  /** Reserves the entry's own cluster, which is marked as zeros or has only some subclusters. */
  private reserveInOwn(
    slice: Buffer,
    place: Place,
    inCluster: number,
    length: number,
    host: number,
  ): Qcow2Reservation {
    const base = { ...place, host, clusters: 1, run: undefined, store: this.storeFor(place, host) }
    if (!this.parts.driver.extended) {
      const whole = { length: this.unitBytes, at: host, isZeroed: false }
      return { ...base, ...whole, subclusters: ALL_SUBCLUSTERS }
    }
    const { allocated } = this.bitmapOf(slice, place.inSlice, place.offset)
    const first = Math.floor(inCluster / this.subclusterBytes)
    const last = Math.floor(
      Math.min(inCluster + length - 1, this.unitBytes - 1) / this.subclusterBytes,
    )
    let end = first + 1
    while (end <= last && !((allocated >>> end) & 1)) end++
    const start = first * this.subclusterBytes
    return {
      ...base,
      offset: place.offset + start,
      length: (end - first) * this.subclusterBytes,
      at: host + start,
      isZeroed: false,
      subclusters: bitsOf(first, end),
    }
  }

  /** Reserves a new cluster of which only the written subclusters become allocated. */
  private reservePart(place: Place, inCluster: number, length: number): Qcow2Reservation {
    const first = Math.floor(inCluster / this.subclusterBytes)
    const until = Math.min(inCluster + length, this.unitBytes)
    const end = Math.ceil(until / this.subclusterBytes)
    const whole = this.reserveClusters(place, 1, bitsOf(first, end))
    const start = first * this.subclusterBytes
    return {
      ...whole,
      offset: place.offset + start,
      length: (end - first) * this.subclusterBytes,
      at: whole.host + start,
    }
  }

  private reserveClusters(place: Place, clusters: number, subclusters: number): Qcow2Reservation {
    const base = { ...place, subclusters }
    if (this.parts.driver.external) {
      // Every byte of the disk has a fixed place in the data file ("External data files").
      const host = place.offset
      const length = clusters * this.unitBytes
      const store = this.storeFor(place, host)
      return { ...base, store, host, at: host, clusters, length, run: undefined, isZeroed: false }
    }
    const run = this.refcounts.allocate(clusters)
    const host = run.cluster * this.unitBytes
    const length = run.clusters * this.unitBytes
    return {
      ...base,
      store: this.storeFor(place, host),
      host,
      at: host,
      clusters: run.clusters,
      length,
      run,
      isZeroed: run.isZeroed && !this.isEncrypted,
    }
  }

  /** Returns the store for writing clusters at `host` that map the disk from `place` on. */
  private storeFor({ offset }: Place, host: number): WritableStore {
    return placed(this.parts.dataStore, offset, host)
  }

  /** Reports whether an extended entry has no cluster, so that nothing has to be copied. */
  private holdsNothing(slice: Buffer, at: number): boolean {
    const high = slice.readUInt32BE(at)
    if (high & COMPRESSED) return false
    return slice.readUInt32BE(at + 12) === 0
  }

  private needsNew(slice: Buffer, inSlice: number, index: number, offset: number): boolean {
    const { driver } = this.parts
    const at = inSlice + index * driver.entryBytes
    return this.ownHost(slice, at, offset - (offset % this.unitBytes) + index * this.unitBytes) < 0
  }

  link(reservation: Reservation): void {
    const r = reservation as Qcow2Reservation
    const { driver } = this.parts
    const slice = this.editLinks(r.sliceAt, r.offset)
    for (let i = 0; i < r.clusters; i++) {
      const at = r.inSlice + i * driver.entryBytes
      const isOwn =
        r.run === undefined && this.ownHost(slice, at, r.offset + i * this.unitBytes) >= 0
      const wasPacked = (slice.readUInt32BE(at) & COMPRESSED) !== 0
      if (!isOwn) this.release(slice, at, r.offset)
      putEntry(slice, at, r.host + i * this.unitBytes, COPIED, 0)
      if (!driver.extended) continue
      // The bits of a compressed cluster have no meaning.
      const zeros = wasPacked ? 0 : slice.readUInt32BE(at + 8)
      const allocated = wasPacked ? 0 : slice.readUInt32BE(at + 12)
      slice.writeUInt32BE((zeros & ~r.subclusters) >>> 0, at + 8)
      slice.writeUInt32BE((allocated | r.subclusters) >>> 0, at + 12)
    }
  }

  cancel(reservation: Reservation): void {
    const { run } = reservation as Qcow2Reservation
    // Bytes in a raw data file are on the disk at once, so link them also after an error.
    if (this.keepsRaw) this.link(reservation)
    else if (run) this.refcounts.cancel(run)
  }

  lookEverywhere(): void {
    this.refcounts.lookEverywhere()
  }

  zeroUnits(offset: number, length: number): number {
    const { driver, header, hasParent } = this.parts
    // A program that reads a raw data file directly must find the zeros there. Such an image has no backing file.
    if (this.keepsRaw) return this.parts.dataStore.punch(offset, length) ? length : 0
    if (header.version === 2 && hasParent) return 0
    const { sliceAt, inSlice } = this.ownPlace(offset)
    const slice = this.editLinks(sliceAt, offset)
    let done = 0
    for (let at = inSlice; done < length && at < slice.length; at += driver.entryBytes) {
      const from = done === 0 ? offset % this.unitBytes : 0
      const to = Math.min(this.unitBytes, from + length - done)
      const bytes = this.flagCluster(slice, at, from, to, offset + done)
      if (bytes === 0) break
      done += bytes
    }
    return Math.min(done, length)
  }

  /** Zeroes the bytes `from` to `to` of the cluster of one entry. Returns how many are zeros now. */
  private flagCluster(slice: Buffer, at: number, from: number, to: number, offset: number): number {
    const { driver, header } = this.parts
    // The disk may end within its last cluster; the rest of that cluster is unused.
    const isWhole = from === 0 && (to === this.unitBytes || offset + to === this.sizeBytes)
    if (!isWhole) return this.flagSubclusters(slice, at, from, to, offset)
    const high = slice.readUInt32BE(at)
    if (driver.external) {
      const host = driver.checkedHost(high, slice.readUInt32BE(at + 4), offset)
      if (driver.isAllocated(high, offset, host)) this.parts.dataStore.punch(host, this.unitBytes)
    } else this.release(slice, at, offset)
    const hasFlag = header.version === 3 && !driver.extended
    putEntry(slice, at, 0, 0, hasFlag ? ZERO_FLAG : 0)
    if (driver.extended) {
      slice.writeUInt32BE(ALL_SUBCLUSTERS, at + 8)
      slice.writeUInt32BE(0, at + 12)
    }
    return to - from
  }

  /** Zeroes subclusters of one cluster. Returns 0 if they are compressed and have to be written. */
  private flagSubclusters(
    slice: Buffer,
    at: number,
    from: number,
    to: number,
    offset: number,
  ): number {
    if (slice.readUInt32BE(at) & COMPRESSED) return 0
    const bits = bitsOf(from / this.subclusterBytes, Math.ceil(to / this.subclusterBytes))
    const { zeros, allocated } = this.bitmapOf(slice, at, offset)
    const { external } = this.parts.driver
    const host = this.ownHost(slice, at, offset)
    const left = (allocated & ~bits) >>> 0
    // Punch at once: if a power cut comes before the flush, either old bytes or zeros are right.
    if (host >= 0 && (left !== 0 || external)) this.parts.dataStore.punch(host + from, to - from)
    if (left === 0 && !external) {
      this.release(slice, at, offset)
      putEntry(slice, at, 0, 0, 0)
    }
    slice.writeUInt32BE((zeros | bits) >>> 0, at + 8)
    slice.writeUInt32BE(left, at + 12)
    return to - from
  }

  collect(): Flush {
    const slices = this.pool.collect()
    for (const { at, stage } of slices) this.checkPlace(at, stage) // rule (4)
    const freedUntil = this.freed.end
    const { pool } = this
    let hasMore = false
    return {
      run: () => this.writeSlices(slices),
      settle: () => {
        pool.flushed(slices)
        this.giveBack(freedUntil)
        hasMore = !this.freed.isEmpty || pool.dirty > 0
      },
      get hasMore() {
        return hasMore
      },
    }
  }

  /** Rule (1). */
  private writeSlices(slices: readonly DirtySlice[]): void {
    const { store } = this.parts
    for (let stage = 0; stage < STAGES; stage++) {
      const due = slices.filter(slice => slice.stage === stage)
      for (const { at, bytes } of due) store.write(bytes, 0, bytes.length, at)
      // The first sync is also for the data.
      if (stage === 0 || due.length > 0) this.sync()
    }
  }

  private sync(): void {
    const { store, dataStore, driver } = this.parts
    orEndWriting(() => {
      if (driver.external) dataStore.sync()
      store.sync()
    })
  }

  private checkPlace(at: number, stage: number): void {
    const kind = this.guard.kindOf(Math.floor(at / this.unitBytes))
    const isRight =
      stage === STAGE.links
        ? kind === KIND.l1 || kind === KIND.l2
        : kind === (stage === STAGE.refcounts ? KIND.refcountBlock : KIND.refcountTable)
    if (isRight) return
    throw this.damage(`a table was to be written to ${at}, where the image has something else`)
  }

  /** Counts down the clusters that were freed before this flush, as far as the pool has room. Rule (3). */
  private giveBack(freedUntil: number): void {
    let start = 0
    let end = 0
    const punch = () => {
      if (end > start)
        this.parts.store.punch(start * this.unitBytes, (end - start) * this.unitBytes)
    }
    while (this.pool.hasRoom(STEP_SLICES)) {
      const freed = this.freed.take(freedUntil)
      if (!freed) break
      for (let c = freed.cluster; c < freed.cluster + freed.clusters; c++) {
        // A table that is still in the guard is not free, whatever its count says.
        if (this.guard.kindOf(c) !== 0 && this.refcounts.count(c) <= 1) continue
        if (!this.refcounts.release(c)) continue
        if (c !== end) {
          punch()
          start = c
        }
        end = c + 1
      }
    }
    punch()
  }

  checkGrowth(sizeBytes: number): void {
    const { driver, header } = this.parts
    if (header.version === 2 && header.snapshotCount > 0) {
      throw this.refused('an image of version 2 with snapshots cannot grow')
    }
    if (this.keepsRaw) throw this.refused('an image with a raw external data file cannot grow')
    if (Math.ceil(sizeBytes / driver.coverage) * 8 > MAX_L1_BYTES) {
      throw this.refused(`a disk of ${sizeBytes} bytes is too large for its clusters`)
    }
  }

  grow(sizeBytes: number): void {
    const { driver, memory, dataStore } = this.parts
    const entries = Math.ceil(sizeBytes / driver.coverage)
    holdBitmaps(this.parts.store, memory.bitmaps, 'resize', () => this.writeFeatures(true))
    if (entries > value(this.state, STATE.l1Entries)) this.growL1(entries)
    if (driver.external && dataStore.sizeBytes < sizeBytes) dataStore.truncate(sizeBytes)
    this.state[STATE.sizeBytes] = sizeBytes
    this.refresh()
  }

  keepSize(): void {
    const { store } = this.parts
    orEndWriting(() => {
      writeDiskSize(store, this.sizeBytes)
      this.sync()
    })
  }

  /** Moves the L1 table to a larger place. The new table is counted and on the disk before the header names it. */
  private growL1(entries: number): void {
    const { driver, store } = this.parts
    const { state, unitBytes } = this
    const oldOffset = value(state, STATE.l1Offset)
    const oldEntries = value(state, STATE.l1Entries)
    const clusters = Math.ceil((entries * 8) / unitBytes)
    const run = this.refcounts.allocateRun(clusters)
    try {
      const table = Buffer.alloc(clusters * unitBytes)
      for (let i = 0; i < oldEntries; i++) {
        const slice = driver.l1Slice(i, 0)
        const at = (i * 8) % driver.sliceBytes
        slice.copy(table, i * 8, at, at + 8)
      }
      const offset = run.cluster * unitBytes
      this.pool.forget(offset, table.length)
      store.write(table, 0, table.length, offset)
      this.flushAlone()
    } catch (error) {
      this.refcounts.cancel(run)
      throw error
    }
    orEndWriting(() => {
      writeL1(store, entries, run.cluster * unitBytes)
      store.sync()
    })
    const oldClusters = Math.ceil((oldEntries * 8) / unitBytes)
    this.pool.forget(oldOffset, oldClusters * unitBytes)
    this.guard.change(oldOffset / unitBytes, oldClusters, 0)
    this.guard.change(run.cluster, clusters, KIND.l1)
    if (oldClusters > 0) this.freed.put(oldOffset / unitBytes, oldClusters)
    state[STATE.l1Offset] = run.cluster * unitBytes
    state[STATE.l1Entries] = entries
    this.refresh()
  }

  close(): readonly string[] {
    const { store, memory, header } = this.parts
    const space = {
      allocate: (clusters: number) => {
        const { cluster } = this.refcounts.allocateRun(clusters)
        this.flushAlone()
        return cluster * this.unitBytes
      },
      free: (at: number, clusters: number) => this.freed.put(at / this.unitBytes, clusters),
    }
    const warnings = storeBitmaps(store, memory.bitmaps, this.sizeBytes, space)
    while (!this.freed.isEmpty || this.pool.dirty > 0) this.flushAlone()
    if (header.version === 3 && this.isLazy) {
      this.writeFeatures(false)
      orEndWriting(() => store.sync())
    }
    return warnings
  }

  /** Makes a whole flush. The caller holds the exclusive side of the lock. */
  private flushAlone(): void {
    const flush = this.collect()
    flush.run()
    flush.settle()
  }

  /** Returns the entry that maps `offset`, in a table that may be changed. */
  private ownPlace(offset: number): Place {
    const { driver } = this.parts
    const table = this.ownTable(Math.floor(offset / driver.coverage), offset)
    const entryAt = Math.floor((offset % driver.coverage) / this.unitBytes) * driver.entryBytes
    const inSlice = entryAt % driver.sliceBytes
    return {
      sliceAt: table + entryAt - inSlice,
      inSlice,
      offset: offset - (offset % this.unitBytes),
    }
  }

  /** Returns the L2 table of an L1 entry, to which nothing else points. Makes a new one or a copy if needed. Rule (5). */
  private ownTable(l1Index: number, offset: number): number {
    const { driver, store } = this.parts
    const { unitBytes } = this
    const old = driver.l2Table(l1Index, offset)
    const inSlice = (l1Index * 8) % driver.sliceBytes
    if (old !== 0 && isCopied(driver.l1Slice(l1Index, offset), inSlice)) {
      if (this.guard.kindOf(old / unitBytes) === KIND.l2) return old
      throw this.damage(`an L2 table at ${old} lies where the image has something else`, offset)
    }
    const table = Buffer.alloc(unitBytes)
    for (let at = 0; old !== 0 && at < unitBytes; at += driver.sliceBytes) {
      driver.slice(old + at, offset).copy(table, at)
    }
    const run = this.refcounts.allocate(1)
    const place = run.cluster * unitBytes
    try {
      this.pool.forget(place, unitBytes)
      store.write(table, 0, unitBytes, place) // rule (2)
      const sliceAt = driver.l1SliceAt(l1Index)
      const load = () => withRoom(store, sliceAt, driver.l1Slice(l1Index, offset))
      putEntry(this.pool.edit(sliceAt, STAGE.links, load), inSlice, place, COPIED, 0)
    } catch (error) {
      this.refcounts.cancel(run)
      throw error
    }
    this.guard.change(run.cluster, 1, KIND.l2)
    if (old !== 0) {
      this.guard.change(old / unitBytes, 1, KIND.snapshotL2)
      this.freed.put(old / unitBytes, 1)
    }
    return place
  }

  private editLinks(sliceAt: number, offset: number): Buffer {
    const { store, driver } = this.parts
    const load = () => withRoom(store, sliceAt, driver.slice(sliceAt, offset))
    return this.pool.edit(sliceAt, STAGE.links, load)
  }

  /** Queues the clusters of the entry at `at`: they lose a reference after a flush has removed the entry. */
  private release(slice: Buffer, at: number, offset: number): void {
    const { driver, header } = this.parts
    if (driver.external) return
    const high = slice.readUInt32BE(at)
    if (high & COMPRESSED) {
      const { at: from, packedBytes } = packedAt(slice, at, header.clusterBits)
      const first = Math.floor(from / this.unitBytes)
      const last = Math.floor((from + packedBytes - 1) / this.unitBytes)
      this.free(first, last - first + 1, offset)
      return
    }
    const host = driver.checkedHost(high, slice.readUInt32BE(at + 4), offset)
    if (host !== 0) this.free(host / this.unitBytes, 1, offset)
  }

  /** Queues clusters. Rule (4): an entry of data that names a table is damage, so never free that table. */
  private free(cluster: number, clusters: number, offset: number): void {
    for (let c = cluster; c < cluster + clusters; c++) {
      if (this.guard.kindOf(c) === 0) continue
      const what = `an L2 entry maps the disk to ${c * this.unitBytes}, where the image has a table`
      throw this.damage(what, offset)
    }
    this.freed.put(cluster, clusters)
  }

  private damage(message: string, offset?: number): ImageError {
    return new ImageError('CORRUPT', message, {
      path: this.parts.store.path,
      ...(offset !== undefined && { offset }),
      endsWriting: true,
    })
  }

  private refused(message: string): ImageError {
    return new ImageError('REFUSED', message, { path: this.parts.store.path })
  }
}

const value = (state: Float64Array, at: number): number => state[at] as number

const isCopied = (slice: Buffer, at: number): boolean => (slice.readUInt32BE(at) & COPIED) !== 0

/** Returns a word with the bits `first` to `end - 1` set. */
const bitsOf = (first: number, end: number): number =>
  (end - first === 32 ? ALL_SUBCLUSTERS : (2 ** (end - first) - 1) << first) >>> 0

/** Writes an L1 entry, or the first 64 bits of an L2 entry. */
function putEntry(
  slice: Buffer,
  at: number,
  host: number,
  highFlags: number,
  lowFlags: number,
): void {
  slice.writeUInt32BE((Math.floor(host / 2 ** 32) | highFlags) >>> 0, at)
  slice.writeUInt32BE((host % 2 ** 32) + lowFlags, at + 4)
}
