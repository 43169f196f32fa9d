/**
 * Writes a VMDK disk: its extents, and its descriptor, whose content ID shows that the disk has changed (VMware, Virtual Disk
 * Format 5.0). grain-writer.ts says how an extent stays sound.
 */
import type { DirtySlice, TablePool } from '../../cache/table-pool.js'
import { ImageError, orEndWriting } from '../../errors.js'
import type { Store, WritableStore } from '../../io/store.js'
import { BaseWriter } from '../base-writer.js'
import type { Extent } from '../driver.js'
import type { FirstChange, Flush, InPlace, Reservation, WritableDriver } from '../writable.js'
import { type DescriptorEdit, descriptorEdits } from './descriptor-edit.js'
import type { Placed, VmdkDriver } from './driver.js'
import { inspectGrains } from './grain-check.js'
import { type GrainReservation, GrainWriter, STEP_SLICES } from './grain-writer.js'
import type { VmdkSpec } from './open.js'
import { wholeSectors } from './grain-tables.js'
import { type GrainLayout, grainLayout } from './layout.js'
import { adopt, appendedBytes, planAdoption } from './repair/adopt.js'
import { StaleTables, mend, planMending, requireReach } from './repair/mend.js'
import { NOTHING, planned } from './repair/reconcile.js'
import { DISK, DISK_WORDS, type VmdkMemory } from './write-memory.js'
import { STAGE } from './entries.js'

export interface VmdkWriterParts {
  readonly spec: VmdkSpec
  /** The file with the descriptor, perhaps one of `stores`. */
  readonly image: WritableStore
  /** The store of each extent, in the spec's order; undefined if it has no file. */
  readonly stores: readonly (WritableStore | undefined)[]
  /** The disk's driver, on the same stores. It reads tables through a cache that asks `pool` first. */
  readonly driver: VmdkDriver
  readonly pool: TablePool
  readonly memory: VmdkMemory
  /** Whether there is a lower layer. */
  readonly hasParent: boolean
}

/** The block size for punching: file systems punch only whole blocks. */
const BLOCK_BYTES = 4096
/** Grains of at most this size are assembled in memory before they are written. */
const MAX_FILL_BYTES = 2 ** 21
/** The largest unit for zeroing: a zeroed part of a large grain can be a hole. */
const MAX_ZERO_UNIT_BYTES = 2 ** 16

/** An extent that is written. */
interface Written extends Placed {
  readonly store: WritableStore
  /** Undefined if the file has the disk's bytes as they are. */
  readonly grains: GrainWriter | undefined
  readonly layout: GrainLayout | undefined
}

interface VmdkReservation extends GrainReservation {
  readonly extent: Written
}

export class VmdkWriter extends BaseWriter implements WritableDriver {
  readonly unitBytes: number
  readonly fillBytes: number
  readonly zeroUnitBytes: number
  readonly detectsZeros: boolean
  readonly sizeBytes: number
  private readonly words: Int32Array
  /** By the extent's index in the descriptor. */
  private readonly written: readonly (Written | undefined)[]

  constructor(private readonly parts: VmdkWriterParts) {
    const { driver, spec, memory, image } = parts
    super('vmdk', image.path)
    this.unitBytes = driver.unitBytes
    this.sizeBytes = driver.sizeBytes
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

  overwritable(offset: number, length: number): InPlace | undefined {
    const { driver } = this.parts
    const { index } = driver.extentAt(offset)
    const extent = this.written[index]
    if (!extent) return undefined
    const found = driver.lookup(offset, length)
    if (found.kind !== 'data') return undefined
    this.touch(index)
    return { store: extent.store, at: found.at, length: found.length }
  }

  begin(first?: FirstChange): void {
    if (first) this.requireWritten(first)
    // Everything that can refuse the disk comes before the first change.
    const mends = this.written.map(extent => extent && this.inspect(extent))
    const edits = this.contentIdEdits()
    for (const mend of mends) mend?.()
    this.writeContentId(edits)
  }

  hasCapacity(): boolean {
    return this.parts.pool.hasCapacity(STEP_SLICES)
  }

  reserve(offset: number, length: number): Reservation {
    const extent = this.extentAt(offset)
    if (!extent.grains) throw new TypeError('a flat extent has nothing to reserve')
    const { start, end, grains } = extent
    // Do this first: appended tables must be synced by the next flush, even if no grain is written.
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
        // Each such piece takes room in the pool, so handle one in a step.
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

  override close(): readonly string[] {
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

  /** Throws ImageError if the first change would be refused: then the content ID must not change. */
  private requireWritten({ offset, isZeroing }: FirstChange): void {
    const isSurelyRefused = !isZeroing || ['data', 'packed'].includes(this.lookup(offset, 1).kind)
    if (isSurelyRefused) this.extentAt(offset)
  }

  /** Returns the extent at `offset`. Throws ImageError if it is not written. */
  private extentAt(offset: number): Written {
    const { index } = this.parts.driver.extentAt(offset)
    const extent = this.written[index]
    if (extent) return extent
    const what = 'this part of the disk is an extent that may not be written'
    throw new ImageError('READ_ONLY', what, { path: this.parts.image.path, offset })
  }

  /**
   * Inspects an extent before its first write. Writing relies on the tables: each grain belongs to one entry, and none overlaps a
   * table. In an extent that was not closed cleanly, the first tables adopt the grains that only the redundant ones name, which
   * readers have shown so far; then the redundant tables are made equal to the first ones. Contradictions are left to a repair,
   * because one of the two is the only trace of a grain.
   */
  private inspect({ store, grains, layout, base, spanBytes }: Written): (() => void) | undefined {
    if (!grains || !layout) return undefined
    const refuse = (at: number, message: () => string) => {
      const context = { path: store.path, endsWriting: true }
      throw new ImageError('CORRUPT', `at ${at}: ${message()}; see vimgfs check`, context)
    }
    const corruption = (at: number, message: () => string) => {
      // The tables show what is free, and the field is corrected below.
      if (at !== layout.freeSectorAt) refuse(at, message)
    }
    const stale = new StaleTables()
    let isEqual = true
    let grainEnd = 0
    inspectGrains(store, layout, {
      corruption,
      disagreement: (at, from, isContradiction, message) => {
        if (isContradiction) refuse(at, message)
        stale.add({ at, from })
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
    const mending = planMending(planned(store, plan), layout, stale.tables)
    const appended = appendedBytes(plan, layout) + mending.bytes
    if (appended > 0) {
      const end = wholeSectors(Math.max(store.sizeBytes, grainEnd))
      requireReach(store, end + appended, spanBytes)
    }
    // From here on nothing may refuse the extent.
    return () => {
      const file = { store, layout, pool: this.parts.pool, base }
      adopt(plan, file)
      // A COWD file may end within its last grain. Appended bytes must not appear there.
      const isShort = grainEnd > store.sizeBytes
      if (isShort) store.truncate(grainEnd)
      const mended = mend(mending, file)
      const isMended = grains.mendFreeSector(grainEnd)
      // Sync the new length first: a header that says more than the file has would mean that this grain was cut off.
      if (isShort || mended > 0 || isMended) orEndWriting(() => store.sync())
      Atomics.add(this.words, DISK.mended, mended)
    }
  }

  /** Returns the edits for a new content ID; none after this mount has changed it. */
  private contentIdEdits(): readonly DescriptorEdit[] {
    const { spec, image } = this.parts
    const place = spec.descriptorPlace
    if (!place || Atomics.load(this.words, DISK.hasCid) !== 0) return []
    const text = Buffer.alloc(place.bytes)
    image.read(text, 0, text.length, place.offset)
    // If the image is written although it has tracking, the user has given that up.
    const edits = descriptorEdits(text, { dropsChangeTracking: true })
    return edits.map(({ at, bytes }) => ({ at: place.offset + at, bytes }))
  }

  /** Writes a new content ID, so that children of this disk detect the change. It is on the disk before the change. */
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

  /** Writes slices by rules (2) and (4) of grain-writer.ts: grains and tables are on the disk before an entry names them. */
  private writeSlices(slices: readonly DirtySlice[], touched: readonly number[]): void {
    const headers = this.write(slices.filter(({ stage }) => stage !== STAGE.entries))
    syncAll([...touched.map(index => this.storeOf(index)), ...headers])
    syncAll(this.write(slices.filter(({ stage }) => stage === STAGE.entries)))
  }

  /** Returns the stores that it has written to. */
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

  /** Returns the extent whose file contains `at` of the pool's space. */
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
