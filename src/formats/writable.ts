/** The seam for writing: what a driver does besides locating bytes, so that one engine can write. */
import type { WritableFileStore, WritableStore } from '../io/store.js'
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
 * A driver whose disk can be written. Everything but `overwritable` and `Flush.run` is called by one
 * thread at a time, while no other thread reads or writes.
 */
export interface WritableDriver extends FormatDriver {
  /**
   * How many bytes from `offset` on, `length` at most, may be written where they are; 0 for none. They
   * then lie at `placeAt` of `dataStore`, in one run. Several threads may ask at once, each its own driver.
   */
  overwritable(offset: number, length: number): number
  readonly placeAt: number
  readonly dataStore: WritableStore
  /** Reservations of at most so many bytes are put together in memory and written at once. */
  readonly fillBytes: number
  /** Called before the first change of this mount; after an error it is called again. */
  begin(): void
  /** Whether what another step changes can be noted. Where not, there is something to flush. */
  hasRoom(): boolean
  /** Takes down that a range is about to change, for those who keep track. Several threads may. */
  mark(offset: number, length: number): void
  /**
   * Space for a piece of the disk that begins at `offset` or, where units are not covered, before it.
   * It may end before `offset + length`. What is there is not overwritable.
   */
  reserve(offset: number, length: number): Reservation
  /** Makes the reserved space, which is filled now, what the disk has there. */
  link(reservation: Reservation): void
  /** Gives space back that was never linked. */
  cancel(reservation: Reservation): void
  /** Makes the next search for free space begin at the start; all that was freed has been given back. */
  lookEverywhere(): void
  /**
   * Makes whole units read as zeros without taking space, from `offset` on, as far as one step can:
   * `length` bytes at most, both multiples of `zeroUnitBytes` or up to the disk's end. Returns how many
   * bytes are done; 0 where the format has no way here.
   */
  zeroUnits(offset: number, length: number): number
  readonly zeroUnitBytes: number
  /** A write of zeros that covers a unit becomes `zeroUnits`. */
  readonly detectsZeros: boolean
  /** Takes down what a flush has to do. */
  collect(): Flush
  /** Where the disk changed its size or its tables' places by another thread's doing. */
  refresh(): void
  /** Throws ImageError where the disk cannot become so large; nothing has changed then. */
  checkGrowth(sizeBytes: number): void
  /**
   * Makes the disk larger, in memory and in its tables, so that what is behind its old end can be
   * zeroed; or takes that back. No flush runs meanwhile.
   */
  grow(sizeBytes: number): void
  /** Makes the size that it has now last; everything else is flushed. */
  keepSize(): void
  /** The last change: the image is closed cleanly; everything is flushed. Returns warnings. */
  close(): readonly string[]
}

/** One flush of a driver: `run`, and `settle` if `run` returned. */
export interface Flush {
  /** Brings to the disk what had changed when it was collected; others read and write meanwhile. */
  run(): void
  settle(): void
  /** Whether more has to be flushed, such as space that was given back only now. */
  readonly hasMore: boolean
}

/** A disk that is mounted for writing, as the requests of one thread see it. */
export interface WritableDisk {
  /** Bytes; it changes by `grow` alone. */
  readonly sizeBytes: number
  /** When it was last written, in milliseconds since 1970; 0 before the first write of this mount. */
  readonly modified: number
  /** Whether something was written that no flush has brought to the disk yet. */
  readonly isDirty: boolean
  /**
   * What is not in order any more: the disk is read, but not written, from now on. Empty while all is
   * well.
   */
  readonly failure: string
  /** What writes answer because of that: EROFS, EIO where a file of the image was cut off; 0 while all is well. */
  readonly writeErrno: number
  /** Looks whether somebody has made a file of the image shorter, and then ends writing. */
  checkFiles(): void
  /** Brackets whatever reads the disk, a snapshot or a layer below; `offset` and `length` in bytes. */
  beginRead(offset: number, length: number): void
  endRead(): void
  /** `offset + length` is at most `sizeBytes`. Throws SystemError, ImageError. */
  write(source: Buffer, start: number, length: number, offset: number): void
  /** Makes a range read as zeros, and gives back what space it can. */
  zero(offset: number, length: number): void
  /** Takes room for a range, which then can be written on a full file system, too; its bytes stay. */
  reserve(offset: number, length: number): void
  /** Returns when all that was written before the call would survive a power cut. */
  flush(): void
  /** Makes the disk larger. Throws ImageError where the image cannot grow. */
  grow(sizeBytes: number): void
  /**
   * Ends writing: all is flushed, space that was freed is given back, and the image is marked as closed
   * cleanly. Called once, when no other thread writes any more. Returns what was not kept, a line each.
   * Throws what `flush` throws.
   */
  close(): readonly string[]
}

export interface DiskHooks {
  /** The image's, which nobody else may make shorter. */
  readonly files?: readonly Partial<Pick<WritableFileStore, 'requireWhole'>>[]
  /** Called now and then while this thread waits for another one, with the seconds since it began. */
  readonly onStall?: ((seconds: number) => void) | undefined
}
