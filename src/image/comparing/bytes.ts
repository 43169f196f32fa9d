/** Compares bytes. */
import { SECTOR_BYTES } from '../../sector.js'

const ZEROS = Buffer.alloc(2 ** 20)
/** Runs that differ are looked for in pieces of this size. */
const STEP_BYTES = 64 * 1024

/** Returns the index of the first byte, below `length`, in which `a` and `b` differ; -1 if there is none. */
export function firstDifference(a: Buffer, b: Buffer, length: number): number {
  let from = 0
  let to = length
  if (equal(a, b, from, to)) return -1
  // Halves are compared by the C library, which is much faster than a loop over bytes.
  while (to - from > 1) {
    const middle = (from + to) >> 1
    if (equal(a, b, from, middle)) from = middle
    else to = middle
  }
  return from
}

/** Returns the index of the first byte of `bytes`, below `length`, that is not 0; -1 if there is none. */
export function firstNonZero(bytes: Buffer, length: number): number {
  for (let start = 0; start < length; start += ZEROS.length) {
    const part = Math.min(ZEROS.length, length - start)
    const found = firstDifference(bytes.subarray(start, start + part), ZEROS, part)
    if (found >= 0) return start + found
  }
  return -1
}

/** Yields the runs of whole sectors, up to `length`, in which `a` and `b` differ. */
export function* differingRuns(
  a: Buffer,
  b: Buffer,
  length: number,
): Generator<{ readonly start: number; readonly length: number }> {
  let start = -1
  for (let at = 0; at < length; ) {
    const isAligned = at % STEP_BYTES === 0
    const step = Math.min(STEP_BYTES, length - at)
    if (isAligned && start < 0 && equal(a, b, at, at + step)) {
      at += step
      continue
    }
    const end = Math.min(length, at + SECTOR_BYTES)
    const isEqual = equal(a, b, at, end)
    if (isEqual && start >= 0) {
      yield { start, length: at - start }
      start = -1
    } else if (!isEqual && start < 0) start = at
    at = end
  }
  if (start >= 0) yield { start, length: length - start }
}

const equal = (a: Buffer, b: Buffer, from: number, to: number): boolean =>
  a.compare(b, from, to, from, to) === 0
