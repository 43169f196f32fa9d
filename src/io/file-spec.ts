/** An open file as plain data, which the threads get as a message. */

export interface FileSpec {
  readonly path: string
  /** The descriptor; of a store that is no local file, a number that tells it apart. */
  readonly fd: number
  readonly sizeBytes: number
  /** The space that the file takes on its own disk, in bytes: no more than this of it can be data. */
  readonly allocatedBytes: number
  /** Whether it was a regular file with a name when it was opened; some file systems tell of none. */
  readonly hasName?: boolean
  /** When it was last written before it was opened. */
  readonly modified: Timestamp
  /** Permission bits. */
  readonly mode: number
  /** The group that it belongs to. */
  readonly gid: number
  /**
   * Where the bytes come from, if they do not come from `fd`: then `fd` only tells files apart, and reading it fails.
   * Undefined for a file of this machine.
   */
  readonly source?: SourceSpec
  /** Present if it is a part of a larger file, such as a disk in an archive: then `fd` and `source` are those of the whole. */
  readonly part?: FilePart
}

/** Where a part lies in its whole file. */
export interface FilePart {
  /** The path of the whole. */
  readonly path: string
  /** The place of the part's first byte. */
  readonly startAt: number
  /** The size of the whole when it was opened. */
  readonly wholeBytes: number
}

/** How a thread reaches a file that is not on this machine: plain data, which `kind` (sources/registry.ts) understands. */
export interface SourceSpec {
  readonly kind: string
}

export interface Timestamp {
  /** Since 1970. */
  readonly seconds: number
  readonly nanoseconds: number
}
