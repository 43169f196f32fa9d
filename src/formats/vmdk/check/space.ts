/**
 * Finds how much unused space of an extent's file can be given back. Space at the end of a hosted extent's file can be cut off.
 * Elsewhere, whole blocks of the file system can become holes. Existing holes take no space. Nothing of a device can be given
 * back.
 */
import type { Store } from '../../../io/store.js'
import type { ExtentLayout } from '../open.js'

/** The extent with the space. */
interface Place {
  readonly layout: ExtentLayout
  /** Whether its file is a device, which cannot be cut off. */
  readonly isDevice?: boolean
}

/** The block size of most file systems; a smaller hole frees nothing. */
const BLOCK_BYTES = 4096

/** Returns how many of the `bytes` unused bytes at `at` can be given back. */
export function reclaimable(extent: Place, store: Store, at: number, bytes: number): number {
  if (extent.isDevice) return 0
  const end = at + bytes
  if (isTail(extent, store, end)) return dataIn(store, at, end)
  return dataIn(
    store,
    Math.ceil(at / BLOCK_BYTES) * BLOCK_BYTES,
    Math.floor(end / BLOCK_BYTES) * BLOCK_BYTES,
  )
}

/** Reports whether space that ends at `end` can be cut off. ESX makes COWD files longer before it needs the space. */
export const isTail = ({ layout }: Pick<Place, 'layout'>, store: Store, end: number): boolean =>
  layout.kind !== 'cowd' && end >= store.sizeBytes

/** Returns how many bytes from `at` up to `end` are not holes. */
function dataIn(store: Store, at: number, end: number): number {
  let found = 0
  for (let next = at; next < end; ) {
    const data = store.nextData(next)
    if (data < 0 || data >= end) break
    const hole = Math.max(data + 1, store.nextHole(data))
    found += Math.min(end, hole) - data
    next = hole
  }
  return found
}
