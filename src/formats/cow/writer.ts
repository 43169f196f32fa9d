/**
 * Writes a cow image (QEMU up to 2.1, block/cow.c; Linux, arch/um/drivers/ubd_kern.c).
 *
 *  (1) A sector has a fixed place, marked or not. So nothing is allocated, and no bit can lead to the header, the bitmap or
 *      another sector.
 *  (2) A sector is whole on the disk before its bit is. A place without its bit may hold anything that a crash has left: it
 *      counts as zeros only after it was made a hole.
 *  (3) A bit that is set stays set. A range that reads as zeros again is a hole of the file.
 *  (4) The bitmap has its space on the file system before a write that changes it returns: otherwise a flush that finds the
 *      file system full would lose many writes that had succeeded.
 *  (5) Only the bitmap and the sectors of the file are written.
 */
import type { DirtySlice } from '../../cache/table-pool.js'
import { ImageError } from '../../errors.js'
import type { Extent } from '../driver.js'
import { PooledWriter, TABLES } from '../pooled-writer.js'
import { preallocate } from '../preallocate.js'
import type { TableWriterParts } from '../table-writer.js'
import type { InPlace, Reservation, WritableDriver } from '../writable.js'
import {
  type BitmapSlice,
  bitOf,
  firstLostSector,
  mappedBytes,
  setBits,
  sliceOf,
  walkBitmap,
} from './bitmap.js'
import type { CowDriver } from './driver.js'
import type { CowHeader } from './header.js'
import { SECTOR_BYTES } from '../../sector.js'

export type CowWriterParts = TableWriterParts<CowHeader, CowDriver>

/** The block size for punching: file systems punch only whole blocks. */
const BLOCK_BYTES = 4096
/** The most bytes of the disk of one reservation. */
const MAX_RUN_BYTES = 2 ** 21
/** The most bytes of the disk that one step marks over a hole: 16 KiB of bits. */
const MAX_HOLE_BYTES = 2 ** 26
/** The most slices that one step changes. */
const STEP_SLICES = 8

export class CowWriter extends PooledWriter implements WritableDriver {
  readonly unitBytes: number
  readonly sizeBytes: number
  readonly fillBytes = MAX_RUN_BYTES
  readonly zeroUnitBytes = BLOCK_BYTES
  readonly detectsZeros = true
  private readonly mappedBytes: number

  constructor(private readonly parts: CowWriterParts) {
    super('cow', parts)
    this.unitBytes = parts.driver.unitBytes
    this.sizeBytes = parts.driver.sizeBytes
    this.mappedBytes = mappedBytes(parts.header)
  }

  lookup(offset: number, length: number): Extent {
    return this.parts.driver.lookup(offset, length)
  }

  overwritable(offset: number, length: number): InPlace | undefined {
    const found = this.lookup(offset, length)
    if (found.kind !== 'data') return undefined
    return { store: this.parts.store, at: found.at, length: found.length }
  }

  /**
   * Refuses an image that has lost marked sectors at its end: writing past them would turn the lost bytes into zeros for good.
   */
  begin(): void {
    const { store, header } = this.parts
    const lost = firstLostSector(header, store.sizeBytes)
    walkBitmap(store, header, lost, (isMarked, sector) => {
      if (!isMarked) return true
      const what = `sector ${sector} is marked as written and beyond the end of the file`
      throw new ImageError('CORRUPT', `${what}; see vimgfs check`, {
        path: store.path,
        endsWriting: true,
      })
    })
  }

  hasCapacity(): boolean {
    return this.parts.pool.hasCapacity(STEP_SLICES)
  }

  reserve(offset: number, length: number): Reservation {
    this.requireBit(offset)
    const { header, store } = this.parts
    const start = offset - (offset % SECTOR_BYTES)
    const wanted = Math.min(offset - start + length, MAX_RUN_BYTES)
    const end = Math.min(roundUp(start + wanted), this.mappedBytes)
    const found = this.lookup(start, end - start)
    this.preallocateSlices(start, found.length)
    const at = header.dataOffset + start
    return { offset: start, length: found.length, store, at, isZeroed: false }
  }

  link({ offset, length }: Reservation): void {
    this.setMarks(offset, length)
  }

  /** Punches the place, so that what was written there takes no space. */
  cancel({ at, length }: Reservation): void {
    this.parts.store.punch(at, length)
  }

  zeroUnits(offset: number, length: number): number {
    const { store, hasParent } = this.parts
    let done = 0
    while (done < length) {
      const found = this.lookup(offset + done, length - done)
      if (found.kind === 'data') {
        if (!store.punch(found.at, found.length)) break
      } else if (hasParent) {
        // Each such piece takes room in the pool, so handle one in a step.
        return done > 0 ? done : this.markHole(offset, found.length)
      }
      done += found.length
    }
    return done
  }

  /**
   * Makes unmarked sectors read as zeros, whatever the backing file has. Returns how many bytes are done; 0 if the file system
   * cannot make holes.
   */
  private markHole(offset: number, length: number): number {
    this.requireBit(offset)
    const { header, store } = this.parts
    const bytes = Math.min(length, MAX_HOLE_BYTES)
    this.preallocateSlices(offset, bytes)
    const at = header.dataOffset + offset
    if (!store.punch(at, bytes)) return 0 // rule (2)
    if (store.sizeBytes < at + bytes) store.truncate(at + bytes)
    this.setMarks(offset, bytes)
    return bytes
  }

  private requireBit(offset: number): void {
    if (offset < this.mappedBytes) return
    const what = 'this sector has no place in the bitmap, as UML made it, and cannot be written'
    throw new ImageError('READ_ONLY', what, { path: this.parts.store.path, offset })
  }

  private setMarks(offset: number, length: number): void {
    const { header, pool, driver } = this.parts
    for (const { slice, first, end } of this.slicesOf(offset, length)) {
      const load = () => driver.read(slice).subarray(0, slice.length)
      const bytes = pool.edit(slice.at, TABLES, load)
      setBits(bytes, bitOf(header, slice.at, first), bitOf(header, slice.at, end))
    }
  }

  /** Applies rule (4). A slice that is in the pool has its space already. */
  private preallocateSlices(offset: number, length: number): void {
    const { store, pool } = this.parts
    for (const { slice } of this.slicesOf(offset, length)) {
      if (pool.find(slice.at) !== undefined) continue
      const { at, length } = this.bitsOf(slice)
      preallocate(store, at, length)
    }
  }

  /** Yields the slices of a range, with the range's sectors in each. */
  private *slicesOf(
    offset: number,
    length: number,
  ): Generator<{ slice: BitmapSlice; first: number; end: number }> {
    const { header } = this.parts
    const to = Math.ceil((offset + length) / SECTOR_BYTES)
    for (let first = Math.floor(offset / SECTOR_BYTES); first < to; ) {
      const slice = sliceOf(header, first)
      const end = Math.min(to, (slice.at + slice.length - header.bitmapOffset) * 8)
      yield { slice, first, end }
      first = end
    }
  }

  /** Returns a slice without its part of the header: rule (5). */
  private bitsOf({ at, length }: BitmapSlice): BitmapSlice {
    const before = Math.max(0, this.parts.header.bitmapOffset - at)
    return { at: at + before, length: length - before }
  }

  /** Writes only the bits of a slice: rule (5). */
  protected override writeSlice({ at, bytes }: DirtySlice): void {
    const bits = this.bitsOf({ at, length: bytes.length })
    this.parts.store.write(bytes, bits.at - at, bits.length, bits.at)
  }
}

const roundUp = (bytes: number): number => Math.ceil(bytes / SECTOR_BYTES) * SECTOR_BYTES
