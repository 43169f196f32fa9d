/** A lock of another program beside an image. */
export interface ForeignLock {
  /** The file to delete if nobody holds the lock. */
  readonly path: string
  /** Whether a program holds it, or may hold it as far as is known. */
  readonly isLive: boolean
  /** The owner, for messages: printable, at most 300 characters. */
  readonly owner: string
  /** Whether it is for writing; true also if that is unknown. */
  readonly writes: boolean
}
