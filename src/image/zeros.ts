/** Zeros that are written: which bytes are some, and how they reach the disk. */
import { isHole } from './holes.js'
import { type Scratch, type WritableView, writeReserved } from './write-engine.js'

/** Zeros are written in pieces of this size where they have to be written. */
export const ZEROS = Buffer.alloc(64 * 1024)
/**
 * A zero byte that is written alone takes space: where fallocate(2) is missing, posix_fallocate(3) reserves room
 * by such bytes. The kernel cuts other writes at pages, into pieces of any length.
 */
export const MIN_ZEROS_BYTES = 2
/** Zeros are compared in pieces of this size: data mostly differ from zeros in the first bytes. */
const COMPARED_BYTES = 4096

/** Returns whether `length` bytes of `source` from `start` on are zeros; they are at least one. */
export function areZeros(source: Buffer, start: number, length: number): boolean {
  if (source[start] !== 0 || source[start + length - 1] !== 0) return false
  for (let at = start; at < start + length; at += COMPARED_BYTES) {
    const bytes = Math.min(COMPARED_BYTES, start + length - at)
    if (source.compare(ZEROS, 0, bytes, at, at + bytes) !== 0) return false
  }
  return true
}

/**
 * Writes zeros to the disk's `offset`, unless the layers below have only holes there; `length` is at most that of ZEROS.
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
  if (inPlace > 0) {
    driver.dataStore.write(ZEROS, 0, inPlace, driver.placeAt)
    return inPlace
  }
  const found = driver.lookup(offset, length)
  if (found.kind === 'parent' && parent && isHole(parent, offset, found.length)) return found.length
  return writeReserved(view, scratch, ZEROS, 0, length, offset)
}
