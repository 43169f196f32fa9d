/** Room on the file system for what is written later: a flush that finds it full loses what was promised. */
import type { WritableStore } from '../io/store.js'

/** Makes sure that no part of `length` bytes at `at` is a hole of the file. Throws SystemError, also ENOSPC. */
export function takeRoom(store: WritableStore, at: number, length: number): void {
  if (store.nextData(at) === at && store.nextHole(at) >= at + length) return
  const bytes = Buffer.alloc(length)
  store.read(bytes, 0, length, at)
  store.write(bytes, 0, length, at)
}
