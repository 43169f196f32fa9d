/** Holes and data of a disk as its readers see them: SEEK_DATA, SEEK_HOLE and st_blocks. */
import { isExpected } from '../errors.js'
import type { Extent, View } from '../formats/driver.js'
import { walkView } from './engine.js'

/**
 * How many pieces one call looks at, half a second's worth: some MiB of tables can describe a disk of
 * more of them than anybody has time for.
 */
const MAX_PIECES = 50_000

/**
 * Where the next data begin, from `offset` on; -1 when there are none. What a format has allocated
 * but the image file never got is a hole too: it reads as zeros.
 */
export function nextData(view: View, offset: number): number {
  let found = -1
  let pieces = 0
  walkView(view, offset, view.driver.sizeBytes - offset, (extent, at, unitBytes) => {
    const isLast = ++pieces === MAX_PIECES
    if (extent.kind === 'zero' && !isLast) return true
    // Zeros that are called data are read as what they are.
    const skipped = extent.kind === 'data' && !isLast ? skipHole(extent, unitBytes) : 0
    if (skipped < extent.length) found = at + skipped
    return found < 0
  })
  return found
}

/** Where the next hole begins, from `offset` on; the disk's end counts as one. */
export function nextHole(view: View, offset: number): number {
  let found = view.driver.sizeBytes
  let pieces = 0
  walkView(view, offset, view.driver.sizeBytes - offset, (extent, at, unitBytes) => {
    if (++pieces === MAX_PIECES) {
      // Whoever asks for the data behind this hole is told that they go on here.
      found = at
      return false
    }
    if (extent.kind === 'packed') return true
    // The last cluster may go on behind the end of its file: there it is a hole.
    const data =
      extent.kind === 'data' ? Math.max(0, extent.store.nextHole(extent.at) - extent.at) : 0
    if (data >= extent.length) return true
    if (extent.kind === 'data' && data >= lostFrom(extent, unitBytes)) return true
    found = at + data
    return false
  })
  return found
}

/** Returns whether the whole range reads as zeros by what the tables say and by the holes of the files. */
export const isHole = (view: View, offset: number, length: number): boolean =>
  walkView(view, offset, length, (extent, _at, unitBytes) => {
    if (extent.kind === 'data') return skipHole(extent, unitBytes) === extent.length
    return extent.kind === 'zero'
  })

type Data = Extract<Extent, { kind: 'data' }>

/** How many bytes at the start of a data extent are a hole of the file; its length when all are. */
function skipHole(extent: Data, unitBytes: number): number {
  const next = extent.store.nextData(extent.at)
  const skipped = next < 0 ? extent.length : next - extent.at
  return Math.min(skipped, lostFrom(extent, unitBytes), extent.length)
}

/**
 * How many bytes of a data extent come before what was lost with the end of its file. That is no
 * hole: reading it is an error, and who copies data only must come to read it.
 */
function lostFrom({ store, at }: Data, unitBytes: number): number {
  return Math.max(0, Math.ceil(store.sizeBytes / unitBytes) * unitBytes - at)
}

/**
 * How many bytes of the disk are allocated, for st_blocks. Programs look for holes only where a file
 * has fewer blocks than its size needs, so whatever is not known for sure is counted as less.
 * @param fileBytes what the image's files take on disk: no more of uncompressed data can be there
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
    // Damage is for those who read there; what was counted up to it stands.
    if (!isExpected(error)) throw error
  }
  const counted = Math.min(plain, fileBytes) + packed
  if (seen >= sizeBytes) return counted
  const estimate = Math.floor(counted * (sizeBytes / Math.max(seen, 1)))
  return Math.max(0, Math.min(estimate, fileBytes + packed, sizeBytes - 512))
}
