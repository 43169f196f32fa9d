/** What an image needs before it is written that was not closed cleanly. */
import { ImageError } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import { INCOMPATIBLE, readHeader } from './header.js'
import { writeFeatures } from './header-update.js'
import { rebuildRefcounts } from './repair.js'

/**
 * Makes the reference counts of an image with the dirty bit right, which lazy refcounts left behind, and
 * clears the bit (QEMU docs/interop/qcow2.rst, "incompatible_features"). Returns a warning, or nothing
 * where the bit is not set. Throws ImageError where the counts cannot be made right, SystemError.
 */
export function recover(store: WritableStore): string | undefined {
  if ((readHeader(store).incompatible & INCOMPATIBLE.dirty) === 0n) return undefined
  try {
    rebuildRefcounts(store)
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    throw new ImageError(
      error.code,
      `it was not closed cleanly, and ${error.message}`,
      error.context,
    )
  }
  store.sync()
  const { incompatible, compatible, autoclear } = readHeader(store)
  writeFeatures(store, { incompatible: incompatible & ~INCOMPATIBLE.dirty, compatible, autoclear })
  store.sync()
  return `${store.path}: it was not closed cleanly; its reference counts have been made anew`
}
