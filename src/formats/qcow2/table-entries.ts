/** Walks tables of 64-bit entries: L1 tables, L2 tables, the refcount table (QEMU docs/interop/qcow2.rst). */
import type { Store } from '../../io/store.js'
import { readWords, wordBuffer } from './words.js'

/** How much of a table is read at once, in bytes. Larger tables may be sparse, so their holes are skipped. */
const CHUNK_BYTES = 2 ** 20

type Visit<T> = (high: number, low: number, index: number) => T | undefined

/**
 * Calls `visit` with the two halves and the index of each entry that is not 0, until it returns a value, and returns that
 * value. A table that ends past the end of the file is read as far as the file goes.
 *
 * @param at the table's place in the file
 * @param bytes the table's size, a multiple of 8
 */
export function findEntry<T>(
  store: Store,
  at: number,
  bytes: number,
  visit: Visit<T>,
): T | undefined {
  const buffer = wordBuffer(Math.min(CHUNK_BYTES, bytes))
  for (let done = 0; done < bytes; ) {
    if (bytes > CHUNK_BYTES) {
      const data = store.nextData(at + done)
      if (data < 0 || data >= at + bytes) return undefined
      done = Math.max(done, data - at - ((data - at) % 8))
    }
    const length = Math.min(CHUNK_BYTES, bytes - done)
    const words = readWords(store, buffer, length, at + done)
    for (let i = 0; i < words.length; i += 2) {
      const high = words[i] as number
      const low = words[i + 1] as number
      if (high === 0 && low === 0) continue
      const found = visit(high, low, done / 8 + i / 2)
      if (found !== undefined) return found
    }
    done += length
  }
  return undefined
}

/** Calls `visit` with the two halves and the index of each entry that is not 0. */
export function eachEntry(
  store: Store,
  at: number,
  bytes: number,
  visit: (high: number, low: number, index: number) => void,
): void {
  findEntry(store, at, bytes, (high, low, index) => {
    visit(high, low, index)
    return undefined
  })
}
