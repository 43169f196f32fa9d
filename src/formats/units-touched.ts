import type { MeasuredImage } from './creating.js'

/** Returns how many units of `unitBytes` bytes the ranges touch, which are in ascending order. */
export function unitsTouched(data: MeasuredImage['data'], unitBytes: number): number {
  let units = 0
  let next = 0
  for (const { offset, length } of data) {
    const first = Math.max(next, Math.floor(offset / unitBytes))
    const end = Math.ceil((offset + length) / unitBytes)
    units += Math.max(0, end - first)
    next = Math.max(next, end)
  }
  return units
}
