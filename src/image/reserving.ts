/** Reserves space for a range of the disk that is written later: clusters with the bytes that the disk has there. */
import { readView } from './engine.js'
import { preallocateRange } from '../formats/preallocate.js'
import { isZero, type Scratch, useReserved, type WritableView } from './write-engine.js'
import type { Reservation } from '../formats/writable.js'

/** The most bytes of the disk that one step handles. */
const STEP_BYTES = 2 ** 24
/** How many bytes are copied at once. */
const COPY_BYTES = 2 ** 20

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
  const bytes = Math.min(length, STEP_BYTES)
  const inPlace = driver.overwritable(offset, bytes)
  if (inPlace) {
    preallocateRange(inPlace.store, inPlace.at, inPlace.length)
    return inPlace.length
  }
  return useReserved(view, offset, bytes, reservation => fillAsIs(view, scratch, reservation))
}

/** Fills the whole reserved space with the bytes that the disk has there. */
function fillAsIs(view: WritableView, scratch: Scratch, reservation: Reservation): void {
  const { offset, length, store, at, isZeroed } = reservation
  if (isZeroed && isZero(view, offset, length)) {
    preallocateRange(store, at, length)
    return
  }
  for (let done = 0; done < length; done += COPY_BYTES) {
    const bytes = Math.min(COPY_BYTES, length - done)
    const part = scratch.take(bytes)
    readView(view, part, 0, bytes, offset + done)
    store.write(part, 0, bytes, at + done, offset + done)
  }
}
