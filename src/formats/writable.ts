/** The seam for writing: the functions of a driver that one engine needs to write all formats. */
import type { WritableFileStore, WritableStore } from '../io/store.js'
import type { FormatDriver } from './driver.js'

/**
 * Space in a store for a piece of the disk, to which nothing points yet. Fill it, then link it: if the program ends in between,
 * space is lost, but never bytes.
 */
export interface Reservation {
  /** The piece of the disk, in bytes. It begins and ends at boundaries of the driver's units. */
  readonly offset: number
  readonly length: number
  readonly store: WritableStore
  readonly at: number
  /** Whether the space reads as zeros where it is not written. */
  readonly isZeroed: boolean
}

/** The place of a piece of the disk that may be written in place, in bytes. */
export interface InPlace {
  readonly store: WritableStore
  readonly at: number
  /** Above 0. */
  readonly length: number
}

/** The change that a mount begins with. */
export interface FirstChange {
  /** Where on the disk it begins, in bytes. */
  readonly offset: number
  /** Whether it makes zeros, which changes nothing where the disk reads as zeros. */
  readonly isZeroing: boolean
}

/**
 * A driver whose disk can be written. One thread at a time calls its functions, while no other thread reads or writes.
 * Exceptions are `overwritable`, `mark` and `Flush.run`.
 */
export interface WritableDriver extends FormatDriver {
  /**
   * Returns where bytes from `offset` on, at most `length`, may be written in place; undefined if the first one may not. Several
   * threads may ask at once, each its own driver.
   */
  overwritable(offset: number, length: number): InPlace | undefined
  /** Reservations of at most so many bytes are assembled in memory and written at once. */
  readonly fillBytes: number
  /**
   * Called before the first change of this mount, and again after an error.
   * @param first the change; undefined where the disk's size changes
   */
  begin(first?: FirstChange): void
  /** Reports whether the table pool has room for one more step. If not, flush first. */
  hasCapacity(): boolean
  /** Records that a range is about to change, for dirty bitmaps. Several threads may call it at once. */
  mark(offset: number, length: number): void
  /**
   * Reserves space for a piece of the disk that begins at `offset`, or before it if that is not a unit's boundary. It may end
   * before `offset + length`. Only called where `overwritable` returns nothing.
   */
  reserve(offset: number, length: number): Reservation
  /** Makes the reserved and filled space the disk's content. */
  link(reservation: Reservation): void
  /** Gives back space that was never linked. */
  cancel(reservation: Reservation): void
  /** Makes the next search for free space begin at the start. Called after all freed space was given back. */
  lookEverywhere(): void
  /**
   * Makes whole units read as zeros without taking space, from `offset` on, as far as one step can: at most `length` bytes. Both
   * are multiples of `zeroUnitBytes`, or the range ends at the disk's end. Returns how many bytes are done; 0 if the format has
   * no way to do it here.
   */
  zeroUnits(offset: number, length: number): number
  readonly zeroUnitBytes: number
  /** Whether a write of zeros that covers a unit uses `zeroUnits`. */
  readonly detectsZeros: boolean
  /** Takes a snapshot of the changes that the next flush will write. */
  collect(): Flush
  /** Called after another thread has changed the size of the disk or the places of its tables. */
  refresh(): void
  /** Throws ImageError if the disk cannot become so large. Changes nothing. */
  checkGrowth(sizeBytes: number): void
  /**
   * Makes the disk larger, in memory and in its tables, so that the part past its old end can be zeroed; or undoes that. No
   * flush runs meanwhile.
   */
  grow(sizeBytes: number): void
  /** Makes the current size permanent. Everything else is flushed. */
  keepSize(): void
  /** Marks the image as closed cleanly, as the last change. Everything is flushed. Returns warnings. */
  close(): readonly string[]
}

/** One flush of a driver: `run`, and `settle` if `run` returned. */
export interface Flush {
  /** Writes and syncs the collected changes, while other threads read and write. */
  run(): void
  settle(): void
  /** Whether there is more to flush, for example because space was given back only now. */
  readonly hasMore: boolean
}

/** A disk that is mounted for writing, as the requests of one thread see it. */
export interface WritableDisk {
  /** The size in bytes. Only `grow` changes it. */
  readonly sizeBytes: number
  /** The time of the last write, in milliseconds since 1970; 0 before the first write of this mount. */
  readonly modified: number
  /** Whether there are writes that no flush has made durable yet. */
  readonly isDirty: boolean
  /** Whether programs may have written the disk's file past this program. */
  readonly isMapped: boolean
  /** Notes that programs may do so from now on, through maps. Every flush then syncs. */
  noteMaps(): void
  /**
   * Why the disk can only be read from now on. Empty while all is well.
   */
  readonly failure: string
  /** The errno of writes after that: EROFS, or EIO if a file of the image was cut off; 0 while all is well. */
  readonly writeErrno: number
  /** Ends writing for the reason `why`: from now on the disk can only be read. */
  end(why: string): void
  /** Checks whether another process has made a file of the image shorter, and if so ends writing. */
  checkFiles(): void
  /** Call it, and `endRead` afterwards, around reading the disk, a snapshot or a lower layer. In bytes. */
  beginRead(offset: number, length: number): void
  endRead(): void
  /** `offset + length` is at most `sizeBytes`. Throws SystemError, ImageError. */
  write(source: Buffer, start: number, length: number, offset: number): void
  /** Makes a range read as zeros, and gives back as much space as possible. */
  zero(offset: number, length: number): void
  /** Reserves space for a range, so that it can be written also when the file system is full. Its bytes stay. */
  reserve(offset: number, length: number): void
  /**
   * Makes the layer itself hold what it reads as in a range, so that it no longer reads it from the layer below. At every moment
   * the disk reads the same.
   * @param areZeros whether the range reads as zeros, which may take no space
   */
  own(offset: number, length: number, areZeros: boolean): void
  /** Returns when all writes before the call would survive a power cut. */
  flush(): void
  /** Makes the disk larger. Throws ImageError if the image cannot grow. */
  grow(sizeBytes: number): void
  /**
   * Ends writing: flushes everything, gives freed space back, and marks the image as closed cleanly. Call it once, when no other
   * thread writes any more. Returns warnings about what was not kept, one line each. Throws what `flush` throws.
   */
  close(): readonly string[]
}

export interface DiskHooks {
  /** The image's files, which no other process may make shorter. */
  readonly files?: readonly Partial<Pick<WritableFileStore, 'requireWhole'>>[]
  /** Called now and then while this thread waits for another one, with the seconds since it began. */
  readonly onStall?: ((seconds: number) => void) | undefined
}
