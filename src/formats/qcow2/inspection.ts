/** What has to be known of an image, and has to be in order, before the first byte of it changes. */
import { ImageError } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import type { BitmapMemory } from './bitmap-memory.js'
import { CountLedger } from './count-ledger.js'
import type { Guard } from './guard.js'
import { guardMetadata } from './guarded.js'
import type { Qcow2Header } from './header.js'
import { lostCluster } from './lost-clusters.js'

/**
 * Fills `guard`, and walks all tables once. Throws ImageError where structures overlap, where counts are lower
 * than references, or where data lie beyond the end of the file; and SystemError.
 */
export function inspectForWriting(
  guard: Guard,
  store: WritableStore,
  header: Qcow2Header,
  bitmaps: BitmapMemory,
): void {
  const ledger = new CountLedger(store, header)
  guard.clear()
  guardMetadata(guard, store, header, bitmaps, ledger)
  const lost = lostCluster(store, header, ledger)
  if (lost === undefined) return
  const what = `there are data at ${lost}, beyond the end of the file: writing would make zeros of them`
  throw new ImageError('CORRUPT', what, { path: store.path, endsWriting: true })
}
