/** Single steps of a write, which cut ranges into pieces that formats can handle. Each needs the disk alone. */
import { preallocateRange } from '../../formats/preallocate.js'
import type { Reservation } from '../../formats/writable.js'
import { lookupAt, readView, walkView } from '../reading/engine.js'
import {
  isZero,
  type Scratch,
  useReserved,
  type WritableView,
  writeReserved,
} from './write-engine.js'
import { writeZeroBytes, ZEROS } from './zeros.js'

/** Writes from `start` of `source` to `offset` of the disk, in place or into new space. Returns how many bytes. */
export function writeStep(
  view: WritableView,
  scratch: Scratch,
  source: Buffer,
  start: number,
  length: number,
  offset: number,
): number {
  const found = view.driver.overwritable(offset, length)
  if (!found) return writeReserved(view, scratch, source, start, length, offset)
  found.store.write(source, start, found.length, found.at, offset)
  return found.length
}

/** Zeroes bytes from `offset` of the disk on, by its tables or by writing. Returns how many. */
export function zeroStep(
  view: WritableView,
  scratch: Scratch,
  offset: number,
  length: number,
): number {
  const step = nextZeroStep(view, offset, length)
  if (step.kind === 'done') return step.length
  const units = step.kind === 'units' ? view.driver.zeroUnits(offset, step.length) : 0
  if (units > 0) return units
  // End pieces at sector boundaries: a power cut must not leave half a sector.
  const bytes = Math.min(step.length, ZEROS.length - (offset % ZEROS.length))
  return writeZeroBytes(view, scratch, offset, bytes)
}

/** The most pieces of nonzero data that one step scans. */
const STEP_PIECES = 64

/** The next step to make a range read as zeros. */
export interface ZeroStep {
  readonly kind: 'done' | 'units' | 'bytes'
  readonly length: number
}

/**
 * Returns how the range at `offset` begins: with bytes that already read as zeros ('done'), with whole units that tables can
 * mark as zeros ('units'), or with bytes to which zeros must be written ('bytes').
 */
export function nextZeroStep(view: WritableView, offset: number, length: number): ZeroStep {
  const unit = view.driver.zeroUnitBytes
  let zeros = 0
  let others = 0
  let pieces = 0
  walkView(view, offset, length, extent => {
    if (extent.kind === 'zero') {
      if (others > 0) return false
      zeros += extent.length
      return true
    }
    if (zeros > 0) return false
    others += extent.length
    // Bound the scan: each step would rescan the whole range.
    return ++pieces < STEP_PIECES || others < unit
  })
  if (zeros > 0) return { kind: 'done', length: zeros }
  const inUnit = offset % unit
  const toBorder = inUnit === 0 ? 0 : unit - inUnit
  if (toBorder > 0) return { kind: 'bytes', length: Math.min(toBorder, length) }
  // Units that are zeros only in part are zeroed as a whole, too: that keeps less space.
  const whole = Math.ceil(others / unit) * unit
  const isEnd = offset + length === view.driver.sizeBytes
  const covered = isEnd ? length : Math.floor(length / unit) * unit
  const units = Math.min(whole, covered)
  return units > 0 ? { kind: 'units', length: units } : { kind: 'bytes', length }
}

/** The most bytes of the disk that one step reserves. */
const RESERVE_STEP_BYTES = 2 ** 24
/** How many bytes such a step copies at once. */
const RESERVE_COPY_BYTES = 2 ** 20

/**
 * Makes sure that the first bytes of the `length` bytes at `offset` can be overwritten in place, with space reserved on the
 * file system. Returns how many, above 0. Throws SystemError, also ENOSPC.
 */
export function reserveStep(
  view: WritableView,
  scratch: Scratch,
  offset: number,
  length: number,
): number {
  const { driver } = view
  const bytes = Math.min(length, RESERVE_STEP_BYTES)
  const inPlace = driver.overwritable(offset, bytes)
  if (inPlace) {
    preallocateRange(inPlace.store, inPlace.at, inPlace.length)
    return inPlace.length
  }
  return useReserved(view, offset, bytes, reservation => fillAsIs(view, scratch, reservation))
}

/**
 * Makes the layer itself hold the first bytes of the `length` bytes at `offset`, as they read. Returns how many, above 0.
 * @param areZeros whether all of them read as zeros
 */
export function ownStep(
  view: WritableView,
  scratch: Scratch,
  offset: number,
  length: number,
  areZeros: boolean,
): number {
  const { driver } = view
  const isBelow = () => lookupAt(driver, offset, 1).kind === 'parent'
  const extent = lookupAt(driver, offset, length)
  if (extent.kind !== 'parent') return extent.length
  const unit = driver.zeroUnitBytes
  const isEnd = offset + extent.length === driver.sizeBytes
  const whole = isEnd ? extent.length : Math.floor(extent.length / unit) * unit
  if (areZeros && offset % unit === 0 && whole > 0) {
    const done = driver.zeroUnits(offset, whole)
    // A driver without a layer below may see nothing to do.
    if (done > 0 && !isBelow()) return done
  }
  const bytes = Math.min(extent.length, RESERVE_STEP_BYTES)
  return useReserved(view, offset, bytes, reservation => copyAsIs(view, scratch, reservation))
}

/** Fills the whole reserved space with the bytes that the disk has there, and makes it allocated on the file system. */
function fillAsIs(view: WritableView, scratch: Scratch, reservation: Reservation): void {
  const { offset, length, store, at, isZeroed } = reservation
  if (isZeroed && isZero(view, offset, length)) preallocateRange(store, at, length)
  else copyAsIs(view, scratch, reservation)
}

/** Fills the whole reserved space with the bytes that the disk has there. */
function copyAsIs(view: WritableView, scratch: Scratch, reservation: Reservation): void {
  const { offset, length, store, at, isZeroed } = reservation
  if (isZeroed && isZero(view, offset, length)) {
    if (store.sizeBytes < at + length) store.truncate(at + length)
    return
  }
  for (let done = 0; done < length; done += RESERVE_COPY_BYTES) {
    const bytes = Math.min(RESERVE_COPY_BYTES, length - done)
    const part = scratch.take(bytes)
    readView(view, part, 0, bytes, offset + done)
    store.write(part, 0, bytes, at + done, offset + done)
  }
}
