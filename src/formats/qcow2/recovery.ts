/** Recovers an image that was not closed cleanly, before it is written. */
import { ImageError, inWords, SystemError } from '../../errors.js'
import type { Store, WritableStore } from '../../io/store.js'
import { INCOMPATIBLE, readHeader } from './header.js'
import { writeFeatures } from './header-update.js'
import { inspectForRecovery } from './inspection.js'
import { rebuildRefcounts, requireKnownCounts } from './repair.js'

/**
 * Corrects the reference counts of an image with the dirty bit, which lazy refcounts have left wrong, and clears the bit
 * (QEMU docs/interop/qcow2.rst, "incompatible_features"). Returns a warning; undefined if the bit is not set. Throws
 * ImageError if the counts cannot be computed or written; the disk still reads as before.
 */
export function recover(store: WritableStore): string | undefined {
  if ((readHeader(store).incompatible & INCOMPATIBLE.dirty) === 0n) return undefined
  try {
    rebuildRefcounts(store)
    const { incompatible, compatible, autoclear } = readHeader(store)
    const features = { incompatible: incompatible & ~INCOMPATIBLE.dirty, compatible, autoclear }
    writeFeatures(store, features)
    store.sync()
  } catch (error) {
    if (!(error instanceof ImageError || error instanceof SystemError)) throw error
    throw notClosed(store, error)
  }
  return `${store.path}: it was not closed cleanly; its reference counts have been rebuilt`
}

/**
 * Throws ImageError if `recover` would fail, as far as that can be known without writing, or if the first write after it would
 * be refused: such an image must not change at all.
 */
export function requireRecoverable(store: Store): void {
  try {
    requireKnownCounts(store)
    inspectForRecovery(store, readHeader(store))
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    throw notClosed(store, error)
  }
}

function notClosed({ path }: Store, error: ImageError | SystemError): ImageError {
  const isImages = error instanceof ImageError
  const why = isImages
    ? error.message
    : `its reference counts cannot be written (${inWords(error)})`
  const context = isImages ? error.context : { path }
  return new ImageError('CORRUPT', `it was not closed cleanly, and ${why}`, context, {
    cause: error,
  })
}
