/** The seam for writing: what a driver does besides locating bytes, so that one engine can write. */
import type { WritableStore } from '../io/store.js'
import type { FormatDriver } from './driver.js'

/**
 * Space in a store for a piece of the disk that nothing points at yet. Fill it, then link it: whatever
 * ends the program in between loses space, never bytes.
 */
export interface Reservation {
  /** The piece of the disk, in bytes; its borders are those of the driver's units. */
  readonly offset: number
  readonly length: number
  readonly store: WritableStore
  readonly at: number
  /** Whether the space reads as zeros where nothing is written to it. */
  readonly isZeroed: boolean
}

/**
 * A driver whose disk can be written. Everything but `overwritable` is called by one thread at a time,
 * while no other thread reads or writes.
 */
export interface WritableDriver extends FormatDriver {
  /**
   * How many bytes from `offset` on, `length` at most, may be written where they are; 0 for none. They
   * then lie at `placeAt` of `dataStore`, in one run.
   */
  overwritable(offset: number, length: number): number
  readonly placeAt: number
  readonly dataStore: WritableStore
  /**
   * Space for the piece of the disk at `offset`, which is not overwritable; it may end before
   * `offset + length`, and may begin before `offset` and end behind it where units are not covered.
   */
  reserve(offset: number, length: number): Reservation
  /** Makes the reserved space, which is filled now, what the disk has there. */
  link(reservation: Reservation): void
  /** Gives space back that was never linked. */
  cancel(reservation: Reservation): void
  /**
   * Makes whole units read as zeros without taking space: `length` bytes from `offset` on, both
   * multiples of `zeroUnitBytes`. False where the format has no way; then nothing has changed.
   */
  zeroUnits(offset: number, length: number): boolean
  readonly zeroUnitBytes: number
}

/** A disk that is mounted for writing, as the requests of one thread see it. */
export interface WritableDisk {
  /** Bytes; it changes by `grow` alone. */
  readonly sizeBytes: number
  /** When it was last written, in milliseconds since 1970; 0 before the first write of this mount. */
  readonly modified: number
  /**
   * What is not in order any more: the disk is read, but not written, from now on. Empty while all is
   * well.
   */
  readonly failure: string
  /** Brackets whatever reads the disk, a snapshot or a layer below; `offset` and `length` in bytes. */
  beginRead(offset: number, length: number): void
  endRead(): void
  /** `offset + length` is at most `sizeBytes`. Throws SystemError, ImageError. */
  write(source: Buffer, start: number, length: number, offset: number): void
  /** Makes a range read as zeros, and gives back what space it can. */
  zero(offset: number, length: number): void
  /** Returns when all that was written before the call would survive a power cut. */
  flush(): void
  /** Makes the disk larger. Throws ImageError where the image cannot grow. */
  grow(sizeBytes: number): void
}
