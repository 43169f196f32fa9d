/** Single steps of a write. Each needs the disk alone. */
import { nextZeroStep, type Scratch, type WritableView, writeReserved } from './write-engine.js'
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
