/** Finds blocks of zeros. */

/** The largest piece that is compared at once, in bytes. */
const PIECE_BYTES = 64 * 1024
const ZEROS = Buffer.alloc(PIECE_BYTES)

/** Reports whether all bytes of `bytes` from `start` to `end` are zeros. */
export function areZeros(bytes: Buffer, start: number, end: number): boolean {
  // Most blocks that are no zeros show it in their first or last byte, which costs less than a call.
  if (end > start && (bytes[start] !== 0 || bytes[end - 1] !== 0)) return false
  for (let at = start; at < end; ) {
    const to = Math.min(at + PIECE_BYTES, end)
    if (bytes.compare(ZEROS, 0, to - at, at, to) !== 0) return false
    at = to
  }
  return true
}
