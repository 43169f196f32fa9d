/**
 * Space of an extent's file that nothing uses, and how much of it can be given back: what is at the end
 * of a hosted extent's file can be cut off, of what lies within the blocks of the file system can become
 * holes. What is a hole already takes no space. Of a device nothing can be given back.
 */
import type { Store } from '../../../io/store.js'
import type { ExtentLayout } from '../image.js'

/** The extent that the space is in. */
interface Place {
  readonly layout: ExtentLayout
  /** Whether its file is a device, of which nothing can be cut off. */
  readonly isDevice?: boolean
}

/** Of most file systems; a hole of less frees nothing. */
const BLOCK_BYTES = 4096

/** How many of `bytes` at `at`, which nothing uses, can be given back. */
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

/** Whether what ends at `end` can be cut off. ESX makes COWD files longer before it needs the space. */
export const isTail = ({ layout }: Pick<Place, 'layout'>, store: Store, end: number): boolean =>
  layout.kind !== 'cowd' && end >= store.sizeBytes

/** How many bytes from `at` up to `end` are no holes. */
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
