/**
 * Finds the bytes of a cow image: a sector whose bit is set is in the file, at a place that depends only on its number. All
 * others are in the backing file (QEMU up to 2.1, block/cow.c).
 */
import type { MetadataCache } from '../../cache/metadata-cache.js'
import { SLICE_BYTES } from '../../cache/table-pool.js'
import { ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import type { Extent, FormatDriver } from '../driver.js'
import { type BitmapSlice, bitOf, endOfRun, isSet, mappedBytes, sliceOf } from './bitmap.js'
import type { CowHeader } from './header.js'
import { SECTOR_BYTES } from '../../sector.js'

export interface CowParts {
  readonly header: CowHeader
  readonly store: Store
  /** Tells stores apart in the cache, 0 to 511. */
  readonly storeId: number
  readonly metadata: MetadataCache
  /** Whether this mount writes the image, so that the bitmap may change. */
  readonly isWritten: boolean
}

/** The most slices that one lookup reads: those of a GiB of the disk. */
const MAX_SLICES = 64

export class CowDriver implements FormatDriver {
  /** 1, because both programs write whole sectors, so that any missing byte at the end of the file is lost. */
  readonly unitBytes = 1
  readonly sizeBytes: number
  private readonly mappedBytes: number
  /** The kind of the last run. A field, to avoid an object on the data path. */
  private isMarked = false

  constructor(private readonly parts: CowParts) {
    this.sizeBytes = parts.header.sizeBytes
    this.mappedBytes = mappedBytes(parts.header)
  }

  lookup(offset: number, length: number): Extent {
    if (offset >= this.mappedBytes) return { kind: 'parent', length }
    const end = Math.min(offset + length, this.mappedBytes)
    const first = Math.floor(offset / SECTOR_BYTES)
    const stop = this.endOfRun(first, Math.ceil(end / SECTOR_BYTES), offset)
    const bytes = Math.min(stop * SECTOR_BYTES, end) - offset
    if (!this.isMarked) return { kind: 'parent', length: bytes }
    const { store, header } = this.parts
    return { kind: 'data', length: bytes, store, at: header.dataOffset + offset }
  }

  /** Returns a slice in its current state; valid until the next call. Throws ImageError, SystemError. */
  read({ at, length }: BitmapSlice): Buffer {
    const { metadata, store, storeId } = this.parts
    return metadata.slice(store, storeId, at, length)
  }

  /** Sets `isMarked` to the bit of `first`. Returns the end of the sectors with the same bit; at most `to`. */
  private endOfRun(first: number, to: number, offset: number): number {
    const { header, isWritten } = this.parts
    let sector = first
    for (let slices = 0; slices < MAX_SLICES && sector < to; slices++) {
      const slice = sliceOf(header, sector)
      const bytes = this.sliceAt(slice, slices === 0, offset)
      // The read that gets to damage further on reports it.
      if (bytes === undefined) return sector
      const bit = bitOf(header, slice.at, sector)
      if (slices === 0) this.isMarked = isSet(bytes, bit)
      else if (isSet(bytes, bit) !== this.isMarked) return sector
      const last = Math.min(slice.length * 8, bit + to - sector)
      const end = endOfRun(bytes, bit, last)
      sector += end - bit
      if (end < last) return sector
      if (!this.isMarked && !isWritten) sector = this.passHole(sector, to)
    }
    return sector
  }

  private sliceAt(slice: BitmapSlice, isFirst: boolean, offset: number): Buffer | undefined {
    try {
      return this.read(slice)
    } catch (error) {
      if (!(error instanceof ImageError)) throw error
      if (!isFirst) return undefined
      const context = { path: this.parts.store.path, offset }
      throw new ImageError('CORRUPT', error.message, context, { cause: error })
    }
  }

  /** Returns the first sector from `sector` on, at most `to`, whose slice is not completely a hole of the file. */
  private passHole(sector: number, to: number): number {
    if (sector >= to) return to
    const { store, header } = this.parts
    const { at } = sliceOf(header, sector)
    const data = store.nextData(at)
    if (data < 0) return this.hasWholeBitmap() ? to : sector
    const bits = Math.max(0, data - (data % SLICE_BYTES) - header.bitmapOffset) * 8
    return Math.min(to, Math.max(sector, bits))
  }

  /** Reports whether the file still has the whole bitmap: what it has lost must not count as a hole. */
  private hasWholeBitmap(): boolean {
    const { store, header } = this.parts
    const last = Buffer.alloc(1)
    return store.read(last, 0, 1, header.bitmapOffset + header.bitmapBytes - 1) === 1
  }
}
