/**
 * Writing a VMDK disk: its extents, and its descriptor, whose content ID says that the disk has changed
 * (VMware, Virtual Disk Format 5.0). How an extent stays sound is said in grain-writer.ts.
 */
import { type DirtySlice, STAGE, type TablePool } from '../../cache/table-pool.js'
import { ImageError, orEndWriting } from '../../errors.js'
import type { Store, WritableStore } from '../../io/store.js'
import type { Extent } from '../driver.js'
import type { FirstChange, Flush, Reservation, WritableDriver } from '../writable.js'
import { type DescriptorEdit, descriptorEdits } from './descriptor-edit.js'
import type { Placed, VmdkDriver } from './driver.js'
import { inspectGrains } from './grain-check.js'
import { type GrainReservation, GrainWriter, STEP_SLICES } from './grain-writer.js'
import type { VmdkSpec } from './image.js'
import { wholeSectors } from './grain-tables.js'
import { type GrainLayout, grainLayout } from './layout.js'
import { adopt, appendedBytes, planAdoption } from './repair/adopt.js'
import { BehindList, mend, planMending, requireReach } from './repair/mend.js'
import { NOTHING, planned } from './repair/reconcile.js'
import { DISK, DISK_WORDS, type VmdkMemory } from './write-memory.js'

export interface VmdkWriterParts {
  readonly spec: VmdkSpec
  /** The file that the descriptor is in; one of `stores`, perhaps. */
  readonly image: WritableStore
  /** Of each extent, in the spec's order; undefined where it has no file. */
  readonly stores: readonly (WritableStore | undefined)[]
  /** The disk's driver, of the same stores; its tables come through a cache that asks `pool` first. */
  readonly driver: VmdkDriver
  readonly pool: TablePool
  readonly memory: VmdkMemory
  /** Whether there is a layer below. */
  readonly hasParent: boolean
}

/** What file systems punch without remainder. */
const BLOCK_BYTES = 4096
/** Grains of at most this size are put together in memory before they are written. */
const MAX_FILL_BYTES = 2 ** 21
/** Part of a large grain that shall read as zeros can be a hole. */
const MAX_ZERO_UNIT_BYTES = 2 ** 16

/** An extent that is written. */
interface Written extends Placed {
  readonly store: WritableStore
  /** Undefined where the file has the disk's bytes as they are. */
  readonly grains: GrainWriter | undefined
  readonly layout: GrainLayout | undefined
}

interface VmdkReservation extends GrainReservation {
  readonly extent: Written
}

export class VmdkWriter implements WritableDriver {
  readonly unitBytes: number
  readonly fillBytes: number
  readonly zeroUnitBytes: number
  readonly detectsZeros: boolean
  readonly sizeBytes: number
  placeAt = 0
  dataStore: WritableStore
  private readonly words: Int32Array
  /** By the extent's place in the descriptor. */
  private readonly written: readonly (Written | undefined)[]

  constructor(private readonly parts: VmdkWriterParts) {
    const { driver, spec, memory, image } = parts
    this.unitBytes = driver.unitBytes
    this.sizeBytes = driver.sizeBytes
    this.dataStore = image
    this.words = new Int32Array(memory.words)
    const written: (Written | undefined)[] = spec.extents.map(() => undefined)
    for (const placed of driver.extents) written[placed.index] = this.writtenOf(placed)
    this.written = written
    const grainBytes = written.flatMap(extent => extent?.grains?.grainBytes ?? [])
    this.detectsZeros = grainBytes.length > 0
    const largest = Math.max(BLOCK_BYTES, ...grainBytes)
    this.zeroUnitBytes = Math.min(largest, MAX_ZERO_UNIT_BYTES)
    this.fillBytes = Math.min(largest, MAX_FILL_BYTES)
  }

  lookup(offset: number, length: number): Extent {
    return this.parts.driver.lookup(offset, length)
  }

  overwritable(offset: number, length: number): number {
    const { driver } = this.parts
    const { index } = driver.extentAt(offset)
    const extent = this.written[index]
    if (!extent) return 0
    const found = driver.lookup(offset, length)
    if (found.kind !== 'data') return 0
    this.touch(index)
    this.placeAt = found.at
    this.dataStore = extent.store
    return found.length
  }

  begin(first?: FirstChange): void {
    if (first) this.requireWritten(first)
    // All that can refuse the disk comes before the first change.
    const mends = this.written.map(extent => extent && this.inspect(extent))
    const edits = this.contentIdEdits()
    for (const mend of mends) mend?.()
    this.writeContentId(edits)
  }

  hasRoom(): boolean {
    return this.parts.pool.hasRoom(STEP_SLICES)
  }

  mark(): void {}

  reserve(offset: number, length: number): Reservation {
    const extent = this.extentAt(offset)
    if (!extent.grains) throw new TypeError('a flat extent has nothing to reserve')
    const { start, end, grains } = extent
    // First of all: tables are appended, which the next flush has to sync, even where no grain is.
    this.touch(extent.index)
    const reserved = grains.reserve(offset - start, Math.min(length, end - offset))
    const reservation: VmdkReservation = { ...reserved, offset: start + reserved.offset, extent }
    return reservation
  }

  link(reservation: Reservation): void {
    const { extent, ...reserved } = reservation as VmdkReservation
    extent.grains?.link(reserved)
  }

  cancel(reservation: Reservation): void {
    const { extent, ...reserved } = reservation as VmdkReservation
    extent.grains?.cancel(reserved)
  }

  /** Grains are appended, and punched at once when they are freed. */
  lookEverywhere(): void {}

  zeroUnits(offset: number, length: number): number {
    const { start, end, store, grains, index } = this.extentAt(offset)
    const inExtent = Math.min(length, end - offset)
    this.touch(index)
    let done = 0
    while (done < inExtent) {
      const found = this.lookup(offset + done, inExtent - done)
      if (found.kind === 'data') {
        if (!store.punch(found.at, found.length)) break
      } else if (found.kind === 'parent' && this.parts.hasParent) {
        // These take room of the pool, so there is one such piece a step.
        return done > 0 || !grains ? done : grains.zeroGrainless(offset - start, found.length)
      } else if (found.kind === 'packed') break
      done += found.length
    }
    return done
  }

  collect(): Flush {
    const { pool } = this.parts
    const slices = pool.collect()
    const touched = this.takeTouched()
    return {
      run: () => {
        try {
          this.writeSlices(slices, touched)
        } catch (error) {
          for (const index of touched) this.touch(index)
          throw error
        }
      },
      settle: () => pool.flushed(slices),
      hasMore: false,
    }
  }

  refresh(): void {}

  checkGrowth(): void {
    throw new ImageError('REFUSED', 'vmdk images cannot grow', { path: this.parts.image.path })
  }

  grow(): void {
    this.checkGrowth()
  }

  keepSize(): void {}

  close(): readonly string[] {
    const closed = this.written.filter(extent => extent?.grains?.isOpen) as Written[]
    for (const { grains } of closed) grains?.close()
    syncAll(closed.map(({ store }) => store))
    const mended = Atomics.load(this.words, DISK.mended)
    if (mended === 0) return []
    return [`${mended} of its redundant grain tables had been left behind and were made right`]
  }

  private writtenOf(placed: Placed): Written | undefined {
    const { spec, stores, pool } = this.parts
    const { layout, isWritable } = spec.extents[placed.index] as VmdkSpec['extents'][number]
    const store = stores[placed.index]
    if (!store || !placed.readTable || !isWritable) return undefined
    const { start, end, base, spanBytes, readTable } = placed
    if (layout.kind === 'flat') return { ...placed, store, grains: undefined, layout: undefined }
    const shape = grainLayout(layout)
    if (!shape) return undefined
    const sizeBytes = end - start
    const parts = { layout: shape, sizeBytes, store, base, spanBytes, readTable, pool }
    return { ...placed, store, grains: new GrainWriter(parts), layout: shape }
  }

  /** Throws ImageError where the first change would be refused: then the content ID must not change. */
  private requireWritten({ offset, isZeroing }: FirstChange): void {
    const isSurelyRefused = !isZeroing || ['data', 'packed'].includes(this.lookup(offset, 1).kind)
    if (isSurelyRefused) this.extentAt(offset)
  }

  /** Throws ImageError where the extent at `offset` is not written. */
  private extentAt(offset: number): Written {
    const { index } = this.parts.driver.extentAt(offset)
    const extent = this.written[index]
    if (extent) return extent
    const what = 'this part of the disk is an extent that may not be written'
    throw new ImageError('READ_ONLY', what, { path: this.parts.image.path, offset })
  }

  /**
   * What is written relies on the tables: each grain is its entry's alone, and none lies over a table. In an
   * extent that was not closed cleanly the first tables take over what only the redundant ones name, which is
   * what was read so far, and then those are made equal to them. What contradicts is left for whoever repairs
   * the image: one of the two is the only trace of a grain.
   */
  private inspect({ store, grains, layout, base, spanBytes }: Written): (() => void) | undefined {
    if (!grains || !layout) return undefined
    const refuse = (at: number, message: () => string) => {
      const context = { path: store.path, endsWriting: true }
      throw new ImageError('CORRUPT', `at ${at}: ${message()}; see vimgfs check`, context)
    }
    const corruption = (at: number, message: () => string) => {
      // What is free is known from the tables, and made right below.
      if (at !== layout.freeSectorAt) refuse(at, message)
    }
    const behind = new BehindList()
    let isEqual = true
    let grainEnd = 0
    inspectGrains(store, layout, {
      corruption,
      disagreement: (at, from, isContradiction, message) => {
        if (isContradiction) refuse(at, message)
        behind.add({ at, from })
        isEqual = false
      },
      surplusTable: () => {
        isEqual = false
      },
      grains: ({ endBytes }) => {
        grainEnd = endBytes
      },
    })
    const inspectPlanned = (plan: Store) =>
      inspectGrains(plan, layout, { corruption, disagreement: () => {} })
    const plan = isEqual
      ? NOTHING
      : planAdoption({ store, layout, spanBytes, refuse, inspect: inspectPlanned })
    const mending = planMending(planned(store, plan), layout, behind.tables)
    const appended = appendedBytes(plan, layout) + mending.bytes
    if (appended > 0) {
      const end = wholeSectors(Math.max(store.sizeBytes, grainEnd))
      requireReach(store, end + appended, spanBytes)
    }
    // From here on nothing refuses the extent any more.
    return () => {
      const file = { store, layout, pool: this.parts.pool, base }
      adopt(plan, file)
      // A COWD file may end within its last grain, and what is appended must not show there.
      const isShort = grainEnd > store.sizeBytes
      if (isShort) store.truncate(grainEnd)
      const mended = mend(mending, file)
      const isMended = grains.mendFreeSector(grainEnd)
      // A header that says more than the file has would say that this grain was cut off.
      if (isShort || mended > 0 || isMended) orEndWriting(() => store.sync())
      Atomics.add(this.words, DISK.mended, mended)
    }
  }

  /** Where the content ID stands in the descriptor, and a new one; nothing once this mount has renewed it. */
  private contentIdEdits(): readonly DescriptorEdit[] {
    const { spec, image } = this.parts
    const place = spec.descriptorPlace
    if (!place || Atomics.load(this.words, DISK.hasCid) !== 0) return []
    const text = Buffer.alloc(place.bytes)
    image.read(text, 0, text.length, place.offset)
    // Where there is tracking, and the image is written, it was given up.
    const edits = descriptorEdits(text, { dropsChangeTracking: true })
    return edits.map(({ at, bytes }) => ({ at: place.offset + at, bytes }))
  }

  /** Whoever has made a child of this disk sees that it has changed since. It is on the disk first. */
  private writeContentId(edits: readonly DescriptorEdit[]): void {
    const { image } = this.parts
    if (edits.length === 0) return
    for (const { at, bytes } of edits) image.write(bytes, 0, bytes.length, at)
    orEndWriting(() => image.sync())
    Atomics.store(this.words, DISK.hasCid, 1)
  }

  private touch(index: number): void {
    Atomics.store(this.words, DISK_WORDS + index, 1)
  }

  private takeTouched(): number[] {
    const touched: number[] = []
    this.written.forEach((_, index) => {
      if (Atomics.exchange(this.words, DISK_WORDS + index, 0) !== 0) touched.push(index)
    })
    return touched
  }

  /** Rules (2) and (4) of grain-writer.ts: what is named is on the disk before it is. */
  private writeSlices(slices: readonly DirtySlice[], touched: readonly number[]): void {
    const headers = this.write(slices.filter(({ stage }) => stage !== STAGE.links))
    syncAll([...touched.map(index => this.storeOf(index)), ...headers])
    syncAll(this.write(slices.filter(({ stage }) => stage === STAGE.links)))
  }

  /** Returns the stores that were written to. */
  private write(slices: readonly DirtySlice[]): WritableStore[] {
    return slices.map(({ at, bytes }) => {
      const { store, base } = this.extentOfSlice(at)
      store.write(bytes, 0, bytes.length, at - base)
      return store
    })
  }

  private storeOf(index: number): WritableStore {
    return (this.written[index] as Written).store
  }

  /** The extent in whose file `at` of the pool's space lies. */
  private extentOfSlice(at: number): Written {
    const { extents } = this.parts.driver
    let low = 0
    let high = extents.length - 1
    while (low < high) {
      const middle = Math.floor((low + high + 1) / 2)
      if ((extents[middle] as Placed).base <= at) low = middle
      else high = middle - 1
    }
    return this.written[(extents[low] as Placed).index] as Written
  }
}

function syncAll(stores: readonly WritableStore[]): void {
  orEndWriting(() => {
    for (const store of new Set(stores)) store.sync()
  })
}
