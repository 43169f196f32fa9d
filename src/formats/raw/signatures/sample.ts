/** The first bytes of a file that may be a disk, and its last ones, for whoever looks for signatures. */
import { SystemError } from '../../../errors.js'
import type { Store } from '../../../io/store.js'

const PIECE_BYTES = 64 * 1024

export interface Sample {
  /** What could be read from the start on; shorter where the file ends, or cannot be read. */
  readonly head: Buffer
  readonly sizeBytes: number
  /** `length` bytes at `at`; fewer where the file ends, or cannot be read. */
  read(at: number, length: number): Buffer
}

/** Reads `length` bytes from the start of `store`. A damaged disk tells what it can. */
export function sampleOf(store: Store, length: number): Sample {
  const read = (at: number, length: number): Buffer => {
    const wanted = Math.max(0, Math.min(length, store.sizeBytes - at))
    const bytes = Buffer.alloc(at < 0 ? 0 : wanted)
    let done = 0
    try {
      while (done < bytes.length) {
        const piece = Math.min(PIECE_BYTES, bytes.length - done)
        const got = store.read(bytes, done, piece, at + done)
        done += got
        if (got < piece) break
      }
    } catch (error) {
      if (!(error instanceof SystemError)) throw error
    }
    return bytes.subarray(0, done)
  }
  return { head: read(0, length), sizeBytes: store.sizeBytes, read }
}

/** Whether `bytes` has `text`, a character a byte, at `at`. */
export const has = (bytes: Buffer, at: number, text: string): boolean =>
  at >= 0 &&
  at + text.length <= bytes.length &&
  bytes.toString('latin1', at, at + text.length) === text

/** Whether a number of 16 or 32 bits lies at `at`, in either order of bytes. */
export function hasNumber(bytes: Buffer, at: number, value: number, bits: 16 | 32): boolean {
  if (at + bits / 8 > bytes.length) return false
  return bits === 16
    ? bytes.readUInt16LE(at) === value || bytes.readUInt16BE(at) === value
    : bytes.readUInt32LE(at) === value || bytes.readUInt32BE(at) === value
}
