/** Functions of writers that only append to their file, and never give space back. */
import { constants } from 'node:os'
import { SystemError } from '../errors.js'
import type { Store, WritableStore } from '../io/store.js'

const { EFBIG } = constants.errno

/** Throws SystemError EFBIG if a file that ends at `end` is longer than `maxBytes`. */
export function requireReachable(store: Store, end: number, maxBytes: number): void {
  if (end > maxBytes) throw new SystemError('write', EFBIG, store.path)
}

/** Cuts off what was appended from `at` on. If that fails, it becomes unused space. */
export function cutBack(store: WritableStore, at: number): void {
  if (store.sizeBytes <= at) return
  try {
    store.truncate(at)
  } catch (error) {
    if (!(error instanceof SystemError)) throw error
  }
}

/** Runs `act`, which appends to the file. If it fails, the file ends at `at` again: by default where it ended before. */
export function appending<T>(store: WritableStore, act: () => T, at = store.sizeBytes): T {
  try {
    return act()
  } catch (error) {
    cutBack(store, at)
    throw error
  }
}

/** Makes space that was appended at `at` end at `end`: the part of it that was not written becomes a hole of the file. */
export function endAppended(store: WritableStore, at: number, end: number): void {
  if (store.sizeBytes < end) appending(store, () => store.truncate(end), at)
}
