/** Detects zeros in writes, and writes zeros. */
import { isHole } from '../reading/holes.js'
import { type Scratch, type WritableView, writeReserved } from './write-engine.js'

/** Zeros that must be written are written in pieces of this size. */
export const ZEROS = Buffer.alloc(64 * 1024)
/**
 * The least length of zeros that take no space. A single zero byte takes space, because posix_fallocate(3) reserves space by
 * writing such bytes where fallocate(2) is missing. The kernel cuts other writes at pages, into pieces of any length.
 */
export const MIN_ZEROS_BYTES = 2
/** Zeros are compared in pieces of this size: data mostly differ from zeros in the first bytes. */
const COMPARED_BYTES = 4096

/** Reports whether `length` bytes of `source` from `start` on are zeros; `length` is above 0. */
export function areZeros(source: Buffer, start: number, length: number): boolean {
  if (source[start] !== 0 || source[start + length - 1] !== 0) return false
  for (let at = start; at < start + length; at += COMPARED_BYTES) {
    const bytes = Math.min(COMPARED_BYTES, start + length - at)
    if (source.compare(ZEROS, 0, bytes, at, at + bytes) !== 0) return false
  }
  return true
}

/**
 * Writes zeros to `offset` of the disk, unless the lower layers have only holes there. `length` is at most that of ZEROS.
 * Returns how many bytes are zeros now, above 0.
 */
export function writeZeroBytes(
  view: WritableView,
  scratch: Scratch,
  offset: number,
  length: number,
): number {
  const { driver, parent } = view
  const inPlace = driver.overwritable(offset, length)
  if (inPlace) {
    inPlace.store.write(ZEROS, 0, inPlace.length, inPlace.at, offset)
    return inPlace.length
  }
  const found = driver.lookup(offset, length)
  if (found.kind === 'parent' && parent && isHole(parent, offset, found.length)) return found.length
  return writeReserved(view, scratch, ZEROS, 0, length, offset)
}
