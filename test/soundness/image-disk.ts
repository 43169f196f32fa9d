/** Disks of qcow and cow images over stores, opened for reading or by the program's own writers. */
import { ClusterCache } from '../../src/cache/cluster-cache.js'
import { COUNTS } from '../../src/cache/counts.js'
import { MetadataCache } from '../../src/cache/metadata-cache.js'
import { type PoolMemory, TablePool } from '../../src/cache/table-pool.js'
import { CowDriver } from '../../src/formats/cow/driver.js'
import { readCowHeader } from '../../src/formats/cow/header.js'
import { CowWriter } from '../../src/formats/cow/writer.js'
import { createDiskMemory } from '../../src/image/disk-memory.js'
import { QcowDriver } from '../../src/formats/qcow/driver.js'
import { readQcowHeader } from '../../src/formats/qcow/header.js'
import { QcowWriter } from '../../src/formats/qcow/writer.js'
import { CipherStore, WritableCipherStore } from '../../src/io/cipher-store.js'
import type { Store, WritableStore } from '../../src/io/store.js'
import { readAll } from '../support/image.js'
import {
  type Changes,
  collectShared,
  type DiskFiles,
  openDisk,
  type OpenDisk,
  parentView,
} from '../support/writable.js'

const CACHE_BYTES = 2 ** 20

/** The program's own writer, of one thread, with `changes`. */
export function openQcow(files: DiskFiles, changes: Changes = {}): OpenDisk {
  collectShared()
  const { store, parent, cipher } = files
  const header = readQcowHeader(store)
  const memory = createDiskMemory(
    { fd: 0, sizeBytes: store.sizeBytes, format: 'qcow', spec: header },
    1,
    store,
  )
  const pool = new TablePool(memory.pool as PoolMemory)
  const plain: WritableStore = cipher ? new WritableCipherStore(store, cipher) : store
  const dataStore = changes.store?.(plain) ?? plain
  const tables = { header, store, storeId: 0, metadata: tablesOf(pool) }
  const driver = new QcowDriver({ ...tables, dataStore, clusters: unpacked() })
  const writer = new QcowWriter({
    ...{ ...tables, dataStore, driver, pool },
    hasParent: parent !== undefined,
    isEncrypted: cipher !== undefined,
  })
  return openDisk(writer, memory, files, changes)
}

/** Returns the disk as a reader of the file sees it. Throws what opening or reading throws. */
export function readQcow({ store, parent, cipher }: DiskFiles<Store>): Buffer {
  const header = readQcowHeader(store)
  const dataStore = cipher ? new CipherStore(store, cipher) : store
  const tables = { store, storeId: 0, metadata: tablesOf() }
  const driver = new QcowDriver({ header, ...tables, dataStore, clusters: unpacked() })
  return readAll({ driver, parent: parent && parentView(parent) })
}

/** As `openQcow`. */
export function openCow(files: DiskFiles, changes: Changes = {}): OpenDisk {
  collectShared()
  const { store, parent } = files
  const header = readCowHeader(store)
  const memory = createDiskMemory(
    { fd: 0, sizeBytes: store.sizeBytes, format: 'cow', spec: header },
    1,
    store,
  )
  const pool = new TablePool(memory.pool as PoolMemory)
  const tables = { header, store, storeId: 0, metadata: tablesOf(pool) }
  const driver = new CowDriver({ ...tables, isWritten: true })
  const writer = new CowWriter({ ...tables, driver, pool, hasParent: parent !== undefined })
  return openDisk(writer, memory, files, changes)
}

/** As `readQcow`. */
export function readCow({ store, parent }: DiskFiles<Store>): Buffer {
  const header = readCowHeader(store)
  const tables = { header, store, storeId: 0, metadata: tablesOf() }
  const driver = new CowDriver({ ...tables, isWritten: false })
  return readAll({ driver, parent: parent && parentView(parent) })
}

const tablesOf = (pool?: TablePool): MetadataCache =>
  new MetadataCache(CACHE_BYTES, new Float64Array(COUNTS), pool)

const unpacked = (): ClusterCache => new ClusterCache(CACHE_BYTES, new Float64Array(COUNTS))
