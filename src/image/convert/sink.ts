/** Where the pipeline puts the disk. Everything comes in ascending order. */
import type { PackingType } from '../../io/codecs.js'
import type { FileSpec } from '../../io/file-spec.js'

export interface Sink {
  /** Data are written in units of so many bytes, a power of two; the disk's end may cut the last one. */
  readonly unitBytes: number
  /** Present if units are stored compressed. */
  readonly packing?: SinkPacking | undefined
  /** Whether zeros must be written. If not, what is never written reads as zeros. */
  readonly storesZeros: boolean
  /** Writes whole units. All functions throw ImageError, SystemError. */
  write(bytes: Buffer, offset: number): void
  /** Stores one unit compressed. */
  pack(packed: Buffer, offset: number): void
  /** Makes whole units read as zeros. */
  zero(offset: number, length: number): void
  /**
   * Writes whole units that share their blocks with the source's files where possible, and copies them elsewhere. What `parts`
   * leave out of the range reads as zeros. Returns whether something is shared. Missing where nothing ever is.
   */
  clone?(offset: number, length: number, parts: readonly ClonedPart[]): boolean
}

export interface SinkPacking {
  readonly type: PackingType
  /** A unit whose result is longer is stored plain. */
  readonly maxBytes: number
  /** Whether no unit is stored plain. Then no result is longer. */
  readonly isAlways?: boolean
}

/** A part of the disk that lies in a file of the source. */
export interface ClonedPart {
  readonly file: FileSpec
  readonly at: number
  readonly offset: number
  readonly length: number
}
