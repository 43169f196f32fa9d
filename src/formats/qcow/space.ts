/**
 * Space of an image's file that nothing uses, and how much of it can be given back: what is at the end of
 * the file can be cut off, of what lies within the blocks of the file system can become holes. What is a
 * hole already takes no space.
 */
import type { Store } from '../../io/store.js'

/** Of most file systems; a hole of less frees nothing. */
const BLOCK_BYTES = 4096

/** How many of `bytes` at `at`, which nothing uses, can be given back. */
export function reclaimable(store: Store, at: number, bytes: number): number {
  const end = at + bytes
  if (end >= store.sizeBytes) return dataIn(store, at, end)
  return dataIn(
    store,
    Math.ceil(at / BLOCK_BYTES) * BLOCK_BYTES,
    Math.floor(end / BLOCK_BYTES) * BLOCK_BYTES,
  )
}

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
