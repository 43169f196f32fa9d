/** The engine that writes: it fills what drivers reserve, and cuts ranges into what formats can do. */
import assert from 'node:assert'
import type { View } from '../formats/driver.js'
import { readView, walkView } from './engine.js'
import type { Reservation, WritableDriver } from '../formats/writable.js'

/** A view whose own layer is written. */
export interface WritableView extends View {
  readonly driver: WritableDriver
}

/** Whether the range reads as zeros by what the tables say. */
export function isZero(view: View, offset: number, length: number): boolean {
  return length === 0 || walkView(view, offset, length, extent => extent.kind === 'zero')
}

/**
 * Writes the first bytes of `length` bytes of `source` at `start` to the disk's `offset`, where they
 * cannot be overwritten in place. Returns how many it wrote, above 0.
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
 * Reserves space for the first bytes of `length` bytes at the disk's `offset`, has `fill` fill it, and links
 * it. Returns how many bytes it took, above 0.
 * @param fill gets the reservation, which of its bytes is at `offset`, and how many are taken from there on
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

/** A buffer as large as a unit, for what surrounds the bytes that are written. */
export class Scratch {
  private buffer = Buffer.alloc(0)

  /** `length` bytes, until the next call. */
  take(length: number): Buffer {
    if (this.buffer.length < length) this.buffer = Buffer.allocUnsafeSlow(length)
    return this.buffer
  }
}

/** What surrounds a write is copied in pieces of this size at most: a grain may have a GiB. */
const COPY_BYTES = 2 ** 21

/** Fills a reservation: `bytes` of `source` from its byte `head` on, around them what the disk has. */
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
    store.write(unit, from, to - from, at + from)
    return
  }
  const keep = (from: number, to: number) => {
    for (let done = from; done < to; ) {
      const length = Math.min(COPY_BYTES, to - done)
      const part = scratch.take(length)
      readView(view, part, 0, length, offset + done)
      store.write(part, 0, length, at + done)
      done += length
    }
  }
  if (keepsHead) keep(0, head)
  store.write(source, start, bytes, at + head)
  if (keepsTail) keep(end, length)
}

/** Pieces of what is no zeros, at most, that one step goes over. */
const STEP_PIECES = 64

/** What is next to be done of a range that shall read as zeros. */
export interface ZeroStep {
  readonly kind: 'done' | 'units' | 'bytes'
  readonly length: number
}

/**
 * How the range at `offset` begins: with what reads as zeros already ('done'), with units that can be
 * zeroed as such ('units'), or with bytes that zeros have to be written to ('bytes').
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
    // All of it would be looked through again in each step.
    return ++pieces < STEP_PIECES || others < unit
  })
  if (zeros > 0) return { kind: 'done', length: zeros }
  const inUnit = offset % unit
  const toBorder = inUnit === 0 ? 0 : unit - inUnit
  if (toBorder > 0) return { kind: 'bytes', length: Math.min(toBorder, length) }
  // Units that hold something else than zeros only in part are zeroed whole: that is less to keep.
  const whole = Math.ceil(others / unit) * unit
  const isEnd = offset + length === view.driver.sizeBytes
  const covered = isEnd ? length : Math.floor(length / unit) * unit
  const units = Math.min(whole, covered)
  return units > 0 ? { kind: 'units', length: units } : { kind: 'bytes', length }
}
