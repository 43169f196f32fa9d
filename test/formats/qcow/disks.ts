/** qcow images over stores, opened as a mount opens them. */
import { ClusterCache } from '../../../src/cache/cluster-cache.js'
import { COUNTS } from '../../../src/cache/counts.js'
import { MetadataCache } from '../../../src/cache/metadata-cache.js'
import { type PoolMemory, TablePool } from '../../../src/cache/table-pool.js'
import { createSectorCipher } from '../../../src/crypto/sector-cipher.js'
import { legacyAesSpec } from '../../../src/crypto/legacy-aes.js'
import { createDiskMemory } from '../../../src/image/disk-memory.js'
import type { View } from '../../../src/formats/driver.js'
import { QcowDriver } from '../../../src/formats/qcow/driver.js'
import { clusterBytes, isEncrypted, readQcowHeader } from '../../../src/formats/qcow/header.js'
import { QcowWriter } from '../../../src/formats/qcow/writer.js'
import { CipherStore, type StoreCipher, WritableCipherStore } from '../../../src/io/cipher-store.js'
import type { Store, WritableStore } from '../../../src/io/store.js'
import { type OpenDisk, openDisk, parentView } from '../../support/writable.js'

const CACHE_BYTES = 2 ** 18

const cipherOf = (clusterBytes: number): StoreCipher => ({
  cipher: createSectorCipher(legacyAesSpec(Buffer.from('12345678'))),
  countsBy: 'disk',
  unitBytes: clusterBytes,
})

const caches = (pool?: TablePool) => ({
  metadata: new MetadataCache(CACHE_BYTES, new Float64Array(COUNTS), pool),
  clusters: new ClusterCache(CACHE_BYTES, new Float64Array(COUNTS)),
})

/** The image for reading. Throws ImageError where its header is damaged. */
export function viewQcow(store: Store, parent?: Buffer): View {
  const header = readQcowHeader(store)
  const dataStore = isEncrypted(header)
    ? new CipherStore(store, cipherOf(clusterBytes(header)))
    : store
  const driver = new QcowDriver({ header, store, dataStore, storeId: 0, ...caches() })
  return { driver, parent: parent && parentView(parent) }
}

/** The image for writing, by one thread. */
export function openQcow(store: WritableStore, parent?: Buffer): OpenDisk {
  const header = readQcowHeader(store)
  const encrypted = isEncrypted(header)
  const dataStore = encrypted
    ? new WritableCipherStore(store, cipherOf(clusterBytes(header)))
    : store
  const memory = createDiskMemory(
    { fd: 0, sizeBytes: store.sizeBytes, format: 'qcow', spec: header },
    1,
    store,
  )
  const pool = new TablePool(memory.pool as PoolMemory)
  const { metadata, clusters } = caches(pool)
  const parts = { header, store, dataStore, storeId: 0, metadata }
  const driver = new QcowDriver({ ...parts, clusters })
  const hasParent = parent !== undefined
  const writer = new QcowWriter({ ...parts, driver, pool, hasParent, isEncrypted: encrypted })
  return openDisk(writer, memory, { store, parent })
}
