/** The error of files that cannot be opened for writing. */
import { ImageError } from '../errors.js'

/** Problems that also a reader of the image is told of: parts of it are lost, or it is marked corrupt. */
export type ReadersProblem = 'LOSSES' | 'MARKED_CORRUPT'

/** A file cannot be opened for writing, but perhaps for reading. */
export class WriteProtected extends ImageError {
  /** @param forReaders the same problem for a reader: its code, and how the image reads, as the end of a sentence */
  constructor(
    path: string,
    message: string,
    hint: string,
    readonly forReaders?: { readonly problem: ReadersProblem; readonly reading: string },
  ) {
    super('READ_ONLY', message, { path, hint })
  }
}
