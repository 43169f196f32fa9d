/** What the tests of cow images have in common: disks over stores, read or written in this process. */
import { COUNTS } from '../../../src/cache/counts.js'
import { MetadataCache } from '../../../src/cache/metadata-cache.js'
import { type PoolMemory, TablePool } from '../../../src/cache/table-pool.js'
import { CowDriver } from '../../../src/formats/cow/driver.js'
import { readCowHeader } from '../../../src/formats/cow/header.js'
import { CowWriter } from '../../../src/formats/cow/writer.js'
import { createDiskMemory } from '../../../src/image/disk-memory.js'
import type { View } from '../../../src/formats/driver.js'
import { SharedDisk } from '../../../src/image/shared-disk.js'
import type { Store, WritableStore } from '../../../src/io/store.js'
import { type BuiltCow, buildCow, type CowSpec } from '../../fixtures/cow-builder.js'
import { noise } from '../../fixtures/model.js'
import { readAll } from '../../support/image.js'
import { MemoryStore } from '../../support/stores.js'
import { bracketed, collectShared, type OpenDisk, parentView } from '../../support/writable.js'

export const SECTOR = 512
const CACHE_BYTES = 2 ** 20

/** An image to be read. */
export function viewOf(store: Store, parent?: Buffer): View & { readonly driver: CowDriver } {
  const metadata = new MetadataCache(CACHE_BYTES, new Float64Array(COUNTS))
  const header = readCowHeader(store)
  const driver = new CowDriver({ header, store, storeId: 0, metadata, isWritten: false })
  return { driver, parent: parent && parentView(parent) }
}

export const readCow = (store: Store, parent?: Buffer): Buffer => readAll(viewOf(store, parent))

/** The program's own writer, of one thread. */
export function openCow(store: WritableStore, parent?: Buffer): OpenDisk {
  collectShared()
  const header = readCowHeader(store)
  const layer = { fd: 0, sizeBytes: store.sizeBytes, format: 'cow', spec: header }
  const memory = createDiskMemory(layer, 1, store)
  const pool = new TablePool(memory.pool as PoolMemory)
  const metadata = new MetadataCache(CACHE_BYTES, new Float64Array(COUNTS), pool)
  const tables = { header, store, storeId: 0, metadata }
  const driver = new CowDriver({ ...tables, isWritten: true })
  const writer = new CowWriter({ ...tables, driver, pool, hasParent: parent !== undefined })
  const view = { driver: writer, parent: parent && parentView(parent) }
  const disk = new SharedDisk(view, memory, 0, store.path)
  return { disk, read: bracketed(disk, view) }
}

/** Runs of sectors, [first, count] each, with bytes that tell them apart. */
export function sectorsOf(runs: readonly (readonly [number, number])[]): Map<number, Buffer> {
  const sectors = new Map<number, Buffer>()
  for (const [first, count] of runs) {
    for (let i = first; i < first + count; i++) sectors.set(i, noise(SECTOR, i + 1))
  }
  return sectors
}

/** What the disk of a built image reads as, over `parent`. */
export function modelOf(
  { sizeBytes, sectors }: Pick<CowSpec, 'sizeBytes' | 'sectors'>,
  parent?: Buffer,
): Buffer {
  const disk = Buffer.alloc(sizeBytes)
  parent?.copy(disk)
  for (const [sector, bytes] of sectors ?? []) bytes.copy(disk, sector * SECTOR)
  return disk
}

export function storeOf(spec: CowSpec): { built: BuiltCow; store: MemoryStore } {
  const built = buildCow(spec)
  return { built, store: new MemoryStore('disk.cow', built.bytes) }
}
