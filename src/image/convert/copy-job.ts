/** A part of a disk that any thread can copy from file to file: plain data, or one compressed unit. */
import { inflateExactly, inflateZlib, unzstdFrame } from '../../io/decompressors.js'
import type { PackedStream } from '../../formats/driver.js'
import { packedPlace } from '../../formats/packed-places.js'
import { clear, pread } from '../../io/libc.js'
import type { WritableStore } from '../../io/store.js'
import { areZeros } from './zeros.js'

/** Plain numbers, for threads. */
export interface CopyJob {
  /** The part of the disk, which has the same place in the target. */
  readonly offset: number
  readonly length: number
  /** The descriptor of the file that has its bytes. */
  readonly fd: number
  /** The place of plain data in the file; of a compressed unit, the place from which its numbers count. */
  readonly at: number
  /** The number of the format whose compressed unit it is (packed-places.ts), and the numbers of its job; -1 for plain data. */
  readonly format: number
  readonly numbers: readonly number[]
}

/** The most bytes of a job of plain data, unless a grain is larger: they stay in the processor's cache between reading and writing. */
export const JOB_BYTES = 256 * 1024

export interface JobTarget {
  readonly store: Pick<WritableStore, 'write'>
  /** The unit in which zeros are searched. Each part of the disk begins at a multiple of it, and ends at one or at the disk's end. */
  readonly grainBytes: number
}

/** Does jobs in the calling thread. */
export class JobRunner {
  private bytes: Buffer = Buffer.allocUnsafeSlow(JOB_BYTES)
  private packed: Buffer = Buffer.allocUnsafeSlow(JOB_BYTES)

  constructor(private readonly target: JobTarget) {}

  /**
   * Does a job. Returns false if its bytes cannot be had so: then nothing is written, and the engine has to say what is wrong.
   * Throws SystemError for the target.
   */
  run(job: CopyJob): boolean {
    const { length, fd, at, format } = job
    this.bytes = enough(this.bytes, length)
    const isRead = format < 0 ? pread(fd, this.bytes, length, at) === length : this.unpack(job)
    if (!isRead) return false
    this.write(this.bytes, job.offset, length)
    return true
  }

  /** Writes what is not zeros of the first `length` bytes. */
  write(bytes: Buffer, offset: number, length: number): void {
    const { grainBytes, store } = this.target
    let from = -1
    for (let start = 0; start < length; start += grainBytes) {
      const isZero = areZeros(bytes, start, Math.min(start + grainBytes, length))
      if (!isZero && from < 0) from = start
      if (!isZero || from < 0) continue
      store.write(bytes, from, start - from, offset + from)
      from = -1
    }
    if (from >= 0) store.write(bytes, from, length - from, offset + from)
  }

  private unpack({ fd, length, at, format, numbers }: CopyJob): boolean {
    const place = packedPlace(format, numbers, length)
    this.packed = enough(this.packed, place.length)
    const got = pread(fd, this.packed, place.length, at + place.at)
    const stream = got > 0 ? place.streamOf(this.packed.subarray(0, got)) : undefined
    if (!stream) return false
    const target = this.bytes.subarray(0, length)
    const made = unpackTo(target, stream)
    if (made < stream.neededBytes) return false
    clear(target, made, length)
    return true
  }
}

/** Returns the bytes written; -1 if the stream is damaged, or if this machine lacks the library. */
function unpackTo(target: Buffer, { type, bytes }: PackedStream): number {
  if (type === 'zlib') return inflateZlib(bytes, target)
  if (type === 'zstd') return unzstdFrame?.(bytes, target) ?? -1
  return inflateExactly(bytes, target) ? target.length : -1
}

const enough = (buffer: Buffer, bytes: number): Buffer =>
  buffer.length >= bytes ? buffer : Buffer.allocUnsafeSlow(bytes)
