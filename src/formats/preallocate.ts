/** Reserves space on the file system for later writes. A flush that found it full would lose acknowledged writes. */
import type { WritableStore } from '../io/store.js'

/** Makes sure that no part of `length` bytes at `at` is a hole of the file. Throws SystemError, also ENOSPC. */
export function preallocate(store: WritableStore, at: number, length: number): void {
  if (store.nextData(at) === at && store.nextHole(at) >= at + length) return
  const bytes = Buffer.alloc(length)
  store.read(bytes, 0, length, at)
  store.write(bytes, 0, length, at)
}

/** How much is read and written at once if the file system cannot reserve space itself. */
const PIECE_BYTES = 64 * 1024

/** Does the same for ranges of any length. The file grows as needed. */
export function preallocateRange(store: WritableStore, at: number, length: number): void {
  if (store.allocate?.(at, length)) return
  for (let done = 0; done < length; done += PIECE_BYTES) {
    preallocate(store, at + done, Math.min(PIECE_BYTES, length - done))
  }
}

/** Makes sure that a table has its space on the file system before it changes. Returns `bytes`. Throws SystemError. */
export function preallocated(store: WritableStore, at: number, bytes: Buffer): Buffer {
  preallocate(store, at, bytes.length)
  return bytes
}
