/** The parts of a writer whose format has tables. */
import type { MetadataCache } from '../cache/metadata-cache.js'
import type { TablePool } from '../cache/table-pool.js'
import type { WritableStore } from '../io/store.js'
import type { FormatDriver } from './driver.js'
import type { WriterParts } from './format.js'

export interface TableWriterParts<Header, Driver extends FormatDriver> {
  readonly header: Header
  /** The disk's driver, on the same stores. It reads tables through `metadata`, which asks the pool first. */
  readonly driver: Driver
  readonly store: WritableStore
  /** The store of the data; it encrypts encrypted data. */
  readonly dataStore: WritableStore
  readonly storeId: number
  readonly metadata: MetadataCache
  readonly pool: TablePool
  /** Whether there is a layer below. */
  readonly hasParent: boolean
}

/** Returns these parts for a format whose driver is a `Driver`. */
export function tableWriterParts<Header, Driver extends FormatDriver>(
  parts: WriterParts<Header>,
): TableWriterParts<Header, Driver> {
  const { layer, store, dataStore, storeId, metadata, hasParent } = parts
  return {
    ...{ header: layer.spec, store, dataStore, storeId, metadata, hasParent },
    driver: parts.driver as Driver,
    pool: parts.pool as TablePool,
  }
}
