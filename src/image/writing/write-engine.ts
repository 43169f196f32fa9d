/** The engine for writing: it fills the space that drivers reserve. */
import assert from 'node:assert'
import type { View } from '../../formats/driver.js'
import { readView, walkView } from '../reading/engine.js'
import type { Reservation, WritableDriver } from '../../formats/writable.js'

/** A view whose own layer is written. */
export interface WritableView extends View {
  readonly driver: WritableDriver
}

/** Reports whether the range reads as zeros according to the tables. */
export function isZero(view: View, offset: number, length: number): boolean {
  return length === 0 || walkView(view, offset, length, extent => extent.kind === 'zero')
}

/**
 * Writes the first bytes of the `length` bytes of `source` at `start` to `offset` of the disk, into new space, because they
 * cannot be written in place. Returns how many it wrote, above 0.
 */
export function writeReserved(
  view: WritableView,
  scratch: Scratch,
  source: Buffer,
  start: number,
  length: number,
  offset: number,
): number {
  return useReserved(view, offset, length, (reservation, head, bytes) =>
    fill(view, reservation, scratch, source, start, head, bytes),
  )
}

/**
 * Reserves space for the first bytes of the `length` bytes at `offset` of the disk, calls `fill` to fill it, and links it.
 * Returns how many bytes it handled, above 0.
 * @param fill gets the reservation, the index of the byte in it that is at `offset`, and how many bytes are handled
 */
export function useReserved(
  view: WritableView,
  offset: number,
  length: number,
  fill: (reservation: Reservation, head: number, bytes: number) => void,
): number {
  const { driver } = view
  const reservation = driver.reserve(offset, length)
  const head = offset - reservation.offset
  const bytes = Math.min(length, reservation.length - head)
  assert(head >= 0 && bytes > 0)
  try {
    fill(reservation, head, bytes)
  } catch (error) {
    driver.cancel(reservation)
    throw error
  }
  driver.link(reservation)
  return bytes
}

/** A buffer as large as a unit, for the bytes around a write. */
export class Scratch {
  private buffer = Buffer.alloc(0)

  /** Returns `length` bytes, valid until the next call. */
  take(length: number): Buffer {
    if (this.buffer.length < length) this.buffer = Buffer.allocUnsafeSlow(length)
    return this.buffer
  }
}

/** Bytes around a write are copied in pieces of at most this size: a grain may have a GiB. */
const COPY_BYTES = 2 ** 21

/** Fills a reservation: `bytes` bytes of `source` from its byte `head` on, and the disk's bytes around them. */
function fill(
  view: WritableView,
  { offset, length, store, at, isZeroed }: Reservation,
  scratch: Scratch,
  source: Buffer,
  start: number,
  head: number,
  bytes: number,
): void {
  const end = head + bytes
  const tail = length - end
  const keepsHead = head > 0 && !(isZeroed && isZero(view, offset, head))
  const keepsTail = tail > 0 && !(isZeroed && isZero(view, offset + end, tail))
  if (length <= view.driver.fillBytes && (keepsHead || keepsTail)) {
    const unit = scratch.take(length)
    const from = keepsHead ? 0 : head
    const to = keepsTail ? length : end
    if (keepsHead) readView(view, unit, 0, head, offset)
    source.copy(unit, head, start, start + bytes)
    if (keepsTail) readView(view, unit, end, tail, offset + end)
    store.write(unit, from, to - from, at + from, offset + from)
    return
  }
  const keep = (from: number, to: number) => {
    for (let done = from; done < to; ) {
      const length = Math.min(COPY_BYTES, to - done)
      const part = scratch.take(length)
      readView(view, part, 0, length, offset + done)
      store.write(part, 0, length, at + done, offset + done)
      done += length
    }
  }
  if (keepsHead) keep(0, head)
  store.write(source, start, bytes, at + head, offset + head)
  if (keepsTail) keep(end, length)
}
