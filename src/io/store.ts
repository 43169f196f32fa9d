/**
 * A file of bytes that formats read from. Tests wrap a Store (to count, fail, delay) and leave all code above it
 * unchanged.
 */
import { constants } from 'node:os'
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
import { replaceFile } from './replace-file.js'

export interface Store {
  /** For messages. */
  readonly path: string
  /** In bytes: the size when it was opened, or the current size if this process writes it. */
  readonly sizeBytes: number
  /**
   * Reads `length` bytes at `at` into `target` from `start` on. Returns the bytes read; fewer only at the end of the file.
   * Throws SystemError.
   * @param offset where the bytes are on the disk. The data of a disk are always read and written with it: some ciphers
   *   count sectors by it (cipher-store.ts).
   */
  read(target: Buffer, start: number, length: number, at: number, offset?: number): number
  /**
   * Returns where the next data begin, from `at` on; -1 if only a hole follows. On a file system without holes it returns
   * `at`.
   */
  nextData(at: number): number
  /** Returns where the next hole begins, from `at` on; the end of the file counts as a hole. */
  nextHole(at: number): number
  /** False if holes of the file, and what was never written, do not read as zeros here; true by default. */
  readonly holesReadAsZeros?: boolean
}

/** A file of bytes that formats also write. All methods throw SystemError with the errno. */
export interface WritableStore extends Store {
  /**
   * Writes `length` bytes of `source` from `start` on to `at`. The file grows as needed; the space between its old end and
   * `at` reads as zeros. After an error any part may have been written. For `offset` see `read`.
   */
  write(source: Buffer, start: number, length: number, at: number, offset?: number): void
  /** Returns when all that was written is on the disk. After an error any part of it may be lost. */
  sync(): void
  /**
   * Gives the space of `length` bytes at `at` back: they read as zeros, and the file's size stays. Returns false if the file
   * system cannot do that; then nothing has changed.
   */
  punch(at: number, length: number): boolean
  /** Makes the file shorter, or longer by a hole. */
  truncate(sizeBytes: number): void
  /**
   * Allocates space for `length` bytes at `at`, whose content stays; the file grows as needed. Returns false if the file
   * system cannot do that; then nothing has changed.
   */
  allocate?(at: number, length: number): boolean
  /**
   * Replaces the whole content at once, and returns when it is on the disk: a power cut leaves the old content or the new one.
   * A new file takes the name, so nothing else may be done with this store afterwards. After an error nothing has changed.
   */
  replace?(content: Buffer): void
}

/** Reports whether holes of a file, and what was never written, read as zeros in `store`. */
export const holesReadAsZeros = (store: Store): boolean => store.holesReadAsZeros !== false

const { EINTR, EIO, ENODEV, ENOSYS, ENXIO, EOPNOTSUPP } = constants.errno
/** The errors of fallocate(2) for files that cannot allocate space. */
const CANNOT_ALLOCATE: readonly number[] = [ENODEV, ENOSYS, EOPNOTSUPP]

/** A regular file or a block device. It does not own its descriptor: the caller closes that. */
export class FileStore implements Store {
  constructor(
    readonly path: string,
    readonly fd: number,
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
    // A part that was cut off since the file was opened is not a hole: reading it must fail.
    const size = at < this.sizeBytes ? regularFileSize(this.fd, true) : -1
    return size >= 0 && size < this.sizeBytes ? Math.max(at, size) : -1
  }

  nextHole(at: number): number {
    const found = seekExtent(this.fd, at, SEEK_HOLE)
    return found >= 0 ? found : this.sizeBytes
  }
}

/** A FileStore for writing. Threads that write the same file share its size in `shared[0]`. */
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
      // Also after an error, since all bytes past the size count as never written. A write that failed at once leaves the size.
      if (done > 0 && at + done > this.sizeBytes) this.reaches(BigInt(at + done))
    }
  }

  sync(): void {
    this.requireWhole(true)
    this.syncData()
  }

  /**
   * Throws ImageError if another process has made the file shorter: a write would make it longer again, and the lost part
   * would read as zeros. That also holds for overwriting in place, so each write asks.
   * @param isAsked whether to ask the server of a network file system
   */
  requireWhole(isAsked: boolean): void {
    const found = regularFileSize(this.fd, isAsked)
    if (found < 0 || found >= this.sizeBytes) return
    // The server of a network file system may not know yet what was written, so sync first. Another thread may shorten the
    // file, too: then the size that the threads share has been lowered before.
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
    // Lowered before the file is cut, so that the file is never shorter than the other threads know.
    if (sizeBytes < before) Atomics.store(this.size, 0, BigInt(sizeBytes))
    while (ftruncate(this.fd, sizeBytes) !== 0) {
      if (errno() === EINTR) continue
      this.reaches(before)
      throw new SystemError('ftruncate', errno(), this.path)
    }
    this.reaches(BigInt(sizeBytes))
  }

  replace(content: Buffer): void {
    this.requireWhole(true)
    replaceFile(this.path, this.fd, content)
  }

  /** Records that the file reaches to `end` since a clone was made by its descriptor. */
  wroteTo(end: number): void {
    if (end > this.sizeBytes) this.reaches(BigInt(end))
  }

  /** Raises the shared size to `end`. Several threads may do so at once. */
  private reaches(end: bigint): void {
    for (let size = Atomics.load(this.size, 0); end > size; ) {
      const found = Atomics.compareExchange(this.size, 0, size, end)
      if (found === size) return
      size = found
    }
  }
}
