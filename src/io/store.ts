/**
 * A file of bytes that formats read from. Wrappers around a Store (count, fail, delay) test all that
 * lies above, which does not change.
 */
import { SystemError } from '../errors.js'
import { errno, pread, SEEK_DATA, SEEK_HOLE, seekExtent } from './libc.js'

export interface Store {
  /** For messages. */
  readonly path: string
  /** Bytes, when it was opened. */
  readonly sizeBytes: number
  /**
   * Reads `length` bytes from `at` into `target` from `start` on. Returns the bytes read, fewer only
   * at the end of the file. Throws SystemError.
   */
  read(target: Buffer, start: number, length: number, at: number): number
  /**
   * Where the next bytes that are no hole begin, from `at` on; -1 when only a hole follows. A file
   * system without holes answers `at`.
   */
  nextData(at: number): number
  /** Where the next hole begins, from `at` on; the end of the file counts as one. */
  nextHole(at: number): number
}

const EINTR = 4
const ENXIO = 6

/** A regular file or a block device, by a descriptor that somebody else closes. */
export class FileStore implements Store {
  constructor(
    readonly path: string,
    private readonly fd: number,
    readonly sizeBytes: number,
  ) {}

  read(target: Buffer, start: number, length: number, at: number): number {
    let done = 0
    while (done < length) {
      const into = start + done === 0 ? target : target.subarray(start + done)
      const got = pread(this.fd, into, length - done, at + done)
      if (got === 0) break
      if (got > 0) done += got
      else if (errno() !== EINTR) throw new SystemError('read', errno(), this.path)
    }
    return done
  }

  nextData(at: number): number {
    const found = seekExtent(this.fd, at, SEEK_DATA)
    if (found >= 0) return found
    return errno() === ENXIO ? -1 : at
  }

  nextHole(at: number): number {
    const found = seekExtent(this.fd, at, SEEK_HOLE)
    return found >= 0 ? found : this.sizeBytes
  }
}
