/** The first and the last bytes of a file that may be a disk, for recognising signatures. */
import { SystemError } from '../../../errors.js'
import type { Store } from '../../../io/store.js'

const PIECE_BYTES = 64 * 1024

export interface Sample {
  /** The bytes from the start on; fewer if the file ends, or cannot be read. */
  readonly head: Buffer
  readonly sizeBytes: number
  /** Returns `length` bytes at `at`; fewer if the file ends, or cannot be read. */
  read(at: number, length: number): Buffer
}

/** Reads `length` bytes from the start of `store`, as far as a damaged disk can be read. */
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

/** Reports whether `bytes` contains `text` at `at`; each character stands for a byte. */
export const has = (bytes: Buffer, at: number, text: string): boolean =>
  at >= 0 &&
  at + text.length <= bytes.length &&
  bytes.toString('latin1', at, at + text.length) === text

/** Reports whether a number of 16 or 32 bits is at `at`, in either byte order. */
export function hasNumber(bytes: Buffer, at: number, value: number, bits: 16 | 32): boolean {
  if (at + bits / 8 > bytes.length) return false
  return bits === 16
    ? bytes.readUInt16LE(at) === value || bytes.readUInt16BE(at) === value
    : bytes.readUInt32LE(at) === value || bytes.readUInt32BE(at) === value
}
