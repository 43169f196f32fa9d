/**
 * Finds how much unused space of an image's file can be given back. Space at the end of the file can be cut off. Elsewhere,
 * whole blocks of the file system can become holes. Existing holes take no space.
 */
import type { Store } from '../../io/store.js'

/** The block size of most file systems; a smaller hole frees nothing. */
const BLOCK_BYTES = 4096

/** Returns how many of the `bytes` unused bytes at `at` can be given back. */
export function reclaimable(store: Store, at: number, bytes: number): number {
  const end = at + bytes
  if (end >= store.sizeBytes) return dataIn(store, at, end)
  return dataIn(
    store,
    Math.ceil(at / BLOCK_BYTES) * BLOCK_BYTES,
    Math.floor(end / BLOCK_BYTES) * BLOCK_BYTES,
  )
}

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
