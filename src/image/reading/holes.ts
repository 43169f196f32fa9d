/** Holes and data of a disk as its readers see them: SEEK_DATA, SEEK_HOLE and st_blocks. */
import { isExpected } from '../../errors.js'
import type { Extent, View } from '../../formats/driver.js'
import { walkView } from './engine.js'

/**
 * The most pieces that one call looks at, half a second's work: a few MiB of tables can describe a disk with more pieces than
 * there is time for.
 */
const MAX_PIECES = 50_000

/**
 * Returns where the next data begin, from `offset` on; -1 if there are none. A cluster that is allocated but a hole of the
 * image's file is a hole, too: it reads as zeros.
 */
export function nextData(view: View, offset: number): number {
  let found = -1
  let pieces = 0
  walkView(view, offset, view.driver.sizeBytes - offset, (extent, at, unitBytes) => {
    const isLast = ++pieces === MAX_PIECES
    if (extent.kind === 'zero' && !isLast) return true
    // If the search stops early, zeros are reported as data, which is harmless.
    const skipped = extent.kind === 'data' && !isLast ? skipHole(extent, unitBytes) : 0
    if (skipped < extent.length) found = at + skipped
    return found < 0
  })
  return found
}

/** Returns where the next hole begins, from `offset` on; the end of the disk counts as a hole. */
export function nextHole(view: View, offset: number): number {
  let found = view.driver.sizeBytes
  let pieces = 0
  walkView(view, offset, view.driver.sizeBytes - offset, (extent, at, unitBytes) => {
    if (++pieces === MAX_PIECES) {
      // If the search stops early: a program that then asks for the next data gets this place again.
      found = at
      return false
    }
    if (extent.kind === 'packed') return true
    // The last cluster may reach past the end of its file: there it is a hole.
    const data =
      extent.kind === 'data' ? Math.max(0, extent.store.nextHole(extent.at) - extent.at) : 0
    if (data >= extent.length) return true
    if (extent.kind === 'data' && data >= lostFrom(extent, unitBytes)) return true
    found = at + data
    return false
  })
  return found
}

/** Reports whether the whole range reads as zeros, by the tables and by the holes of the files. */
export const isHole = (view: View, offset: number, length: number): boolean =>
  walkView(view, offset, length, (extent, _at, unitBytes) => {
    if (extent.kind === 'data') return skipHole(extent, unitBytes) === extent.length
    return extent.kind === 'zero'
  })

type Data = Extract<Extent, { kind: 'data' }>

/** Returns how many bytes at the start of a data extent are a hole of the file; at most its length. */
function skipHole(extent: Data, unitBytes: number): number {
  const next = extent.store.nextData(extent.at)
  const skipped = next < 0 ? extent.length : next - extent.at
  return Math.min(skipped, lostFrom(extent, unitBytes), extent.length)
}

/**
 * Returns how many bytes of a data extent come before the part that was lost with the end of its file. The lost part is not a
 * hole: reading it is an error, and a program that copies only data must meet that error.
 */
function lostFrom({ store, at }: Data, unitBytes: number): number {
  return Math.max(0, Math.ceil(store.sizeBytes / unitBytes) * unitBytes - at)
}

/**
 * Returns how many bytes of the disk are allocated, for st_blocks. Programs look for holes only in a file that has fewer
 * blocks than its size needs. So in doubt this counts less.
 * @param fileBytes the space that the image's files take: there cannot be more uncompressed data
 * @param milliseconds how long counting may take; the rest is estimated
 */
export function countAllocated(view: View, fileBytes: number, milliseconds: number): number {
  const { sizeBytes } = view.driver
  let plain = 0
  let packed = 0
  let visits = 0
  let seen = 0
  const deadline = performance.now() + milliseconds
  try {
    walkView(view, 0, sizeBytes, (extent, at) => {
      if (extent.kind === 'data') plain += extent.length
      else if (extent.kind === 'packed') packed += extent.length
      seen = at + extent.length
      return ++visits % 64 !== 0 || performance.now() < deadline
    })
  } catch (error) {
    // Reading reports damage. The count up to the damage stands.
    if (!isExpected(error)) throw error
  }
  const counted = Math.min(plain, fileBytes) + packed
  if (seen >= sizeBytes) return counted
  const estimate = Math.floor(counted * (sizeBytes / Math.max(seen, 1)))
  return Math.max(0, Math.min(estimate, fileBytes + packed, sizeBytes - 512))
}
