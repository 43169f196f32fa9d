/** Inspects an image before its first byte changes. */
import { ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import { type BitmapMemory, loadBitmaps } from './bitmap-memory.js'
import { CountLedger } from './count-ledger.js'
import { createMetadataMapMemory, MetadataMap } from './metadata-map.js'
import { mapMetadata } from './map-metadata.js'
import type { Qcow2Header } from './header.js'
import { lostCluster } from './lost-clusters.js'

/**
 * Fills the map, and walks all tables once. Throws ImageError if structures overlap, if counts are lower than references, or
 * if data lie past the end of the file; and SystemError.
 */
export function inspectForWriting(
  metadataMap: MetadataMap,
  store: Store,
  header: Qcow2Header,
  bitmaps: BitmapMemory,
  ledger = new CountLedger(store, header),
): void {
  metadataMap.clear()
  mapMetadata(metadataMap, store, header, bitmaps, ledger)
  const lost = lostCluster(store, header, ledger)
  if (lost === undefined) return
  const what = `there are data at ${lost}, beyond the end of the file: writing would make zeros of them`
  throw new ImageError('CORRUPT', what, { path: store.path, endsWriting: true })
}

/**
 * Throws what `inspectForWriting` would throw after the reference counts have been corrected: an image that cannot be written
 * anyway is not recovered. An overlap with a bitmap refuses the image here, too.
 */
export function inspectForRecovery(store: Store, header: Qcow2Header): void {
  const bitmaps = loadBitmaps(store, header, () => true)
  const ledger = new CountLedger(store, header, { areCountsRight: true })
  inspectForWriting(new MetadataMap(createMetadataMapMemory()), store, header, bitmaps, ledger)
}
