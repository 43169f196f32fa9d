/**
 * A file of bytes that formats read from. Wrappers around a Store (count, fail, delay) test all that
 * lies above, which does not change.
 */
import { ImageError, SystemError } from '../errors.js'
import {
  errno,
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  fallocate,
  fdatasync,
  ftruncate,
  pread,
  pwrite,
  regularFileSize,
  SEEK_DATA,
  SEEK_HOLE,
  seekExtent,
} from './libc.js'

export interface Store {
  /** For messages. */
  readonly path: string
  /** Bytes: when it was opened, or now where this process writes it. */
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

/** A file of bytes that formats write, too. What fails throws a SystemError with the errno. */
export interface WritableStore extends Store {
  /**
   * Writes `length` bytes of `source` from `start` on at `at`; the file grows as needed, and what lies
   * between its old end and `at` reads as zeros. After an error any part of it may have been written.
   */
  write(source: Buffer, start: number, length: number, at: number): void
  /** Returns when all that was written is on the disk; after an error none of it may be. */
  sync(): void
  /**
   * Gives `length` bytes at `at` back: they read as zeros, the file's size stays. False where the file
   * system cannot; then nothing has changed.
   */
  punch(at: number, length: number): boolean
  /** Makes the file shorter, or longer by a hole. */
  truncate(sizeBytes: number): void
  /**
   * Takes room for `length` bytes at `at`, whose content stays; the file grows as needed. False where the file
   * system cannot; then nothing has changed.
   */
  allocate?(at: number, length: number): boolean
}

const EINTR = 4
const EIO = 5
const ENXIO = 6
/** What fallocate(2) answers on files that cannot take room: ENODEV, ENOSYS, EOPNOTSUPP. */
const CANNOT_ALLOCATE: readonly number[] = [19, 38, 95]

/** A regular file or a block device, by a descriptor that somebody else closes. */
export class FileStore implements Store {
  constructor(
    readonly path: string,
    protected readonly fd: number,
    private readonly openedBytes: number,
  ) {}

  get sizeBytes(): number {
    return this.openedBytes
  }

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
    if (errno() !== ENXIO) return at
    // What somebody has cut off since the file was opened is no hole: reading it must fail.
    const size = at < this.sizeBytes ? regularFileSize(this.fd, true) : -1
    return size >= 0 && size < this.sizeBytes ? Math.max(at, size) : -1
  }

  nextHole(at: number): number {
    const found = seekExtent(this.fd, at, SEEK_HOLE)
    return found >= 0 ? found : this.sizeBytes
  }
}

/** The same, for writing. Threads that write the same file share its size in `shared[0]`. */
export class WritableFileStore extends FileStore implements WritableStore {
  private readonly size: BigInt64Array

  constructor(path: string, fd: number, shared: BigInt64Array) {
    super(path, fd, Number(shared[0]))
    this.size = shared
  }

  override get sizeBytes(): number {
    return Number(Atomics.load(this.size, 0))
  }

  write(source: Buffer, start: number, length: number, at: number): void {
    this.requireWhole(false)
    let done = 0
    try {
      while (done < length) {
        const from = start + done === 0 ? source : source.subarray(start + done)
        const wrote = pwrite(this.fd, from, length - done, at + done)
        if (wrote > 0) done += wrote
        else if (wrote === 0) throw new SystemError('write', EIO, this.path)
        else if (errno() !== EINTR) throw new SystemError('write', errno(), this.path)
      }
    } finally {
      // Also after an error: what lies behind the size counts as never written.
      if (at + done > this.sizeBytes) this.reaches(BigInt(at + done))
    }
  }

  sync(): void {
    this.requireWhole(true)
    this.syncData()
  }

  /**
   * Throws ImageError where somebody else has made the file shorter: a write would make it longer again, and
   * what was cut off would read as zeros. Overwriting in place would, too, so each write asks.
   * @param isAsked whether the server of a network file system is asked
   */
  requireWhole(isAsked: boolean): void {
    const found = regularFileSize(this.fd, isAsked)
    if (found < 0 || found >= this.sizeBytes) return
    // A network file system may learn late of what was written. Another thread may shorten the file, too: the
    // size that the threads share says so beforehand.
    this.syncData()
    const size = regularFileSize(this.fd, true)
    const { sizeBytes } = this
    if (size < 0 || size >= sizeBytes) return
    const what = `${this.path} has been cut off while it was mounted: it has ${size} of ${sizeBytes} bytes`
    throw new ImageError('CORRUPT', what, { endsWriting: true, isCutOff: true })
  }

  private syncData(): void {
    while (fdatasync(this.fd) !== 0) {
      if (errno() !== EINTR) throw new SystemError('fdatasync', errno(), this.path)
    }
  }

  punch(at: number, length: number): boolean {
    return fallocate(this.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, length) === 0
  }

  allocate(at: number, length: number): boolean {
    this.requireWhole(false)
    while (fallocate(this.fd, 0, at, length) !== 0) {
      if (CANNOT_ALLOCATE.includes(errno())) return false
      if (errno() !== EINTR) throw new SystemError('fallocate', errno(), this.path)
    }
    this.reaches(BigInt(at + length))
    return true
  }

  truncate(sizeBytes: number): void {
    this.requireWhole(false)
    const before = Atomics.load(this.size, 0)
    // A file that becomes shorter is never shorter than the other threads know.
    if (sizeBytes < before) Atomics.store(this.size, 0, BigInt(sizeBytes))
    while (ftruncate(this.fd, sizeBytes) !== 0) {
      if (errno() === EINTR) continue
      this.reaches(before)
      throw new SystemError('ftruncate', errno(), this.path)
    }
    this.reaches(BigInt(sizeBytes))
  }

  /** Several threads may make the file longer at once. */
  private reaches(end: bigint): void {
    for (let size = Atomics.load(this.size, 0); end > size; ) {
      const found = Atomics.compareExchange(this.size, 0, size, end)
      if (found === size) return
      size = found
    }
  }
}
