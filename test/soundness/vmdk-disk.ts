/** VMDK disks over stores, opened for reading or by the program's own writer. */
import { ClusterCache } from '../../src/cache/cluster-cache.js'
import { COUNTS } from '../../src/cache/counts.js'
import { MetadataCache } from '../../src/cache/metadata-cache.js'
import { type PoolMemory, TablePool } from '../../src/cache/table-pool.js'
import type { FileSpec } from '../../src/io/file-spec.js'
import { createDiskMemory } from '../../src/image/disk-memory.js'
import { SharedDisk } from '../../src/image/shared-disk.js'
import { VmdkDriver } from '../../src/formats/vmdk/driver.js'
import { openVmdk, type VmdkSpec } from '../../src/formats/vmdk/image.js'
import type { VmdkMemory } from '../../src/formats/vmdk/write-memory.js'
import { VmdkWriter } from '../../src/formats/vmdk/writer.js'
import type { WritableDriver } from '../../src/formats/writable.js'
import type { Store, WritableStore } from '../../src/io/store.js'
import { readAll } from '../support/image.js'
import { bracketed, collectShared, type OpenDisk, parentView } from '../support/writable.js'

/** The image first, and the files of its extents, which their paths name. */
export interface VmdkFiles<S extends Store = WritableStore> {
  readonly stores: readonly S[]
  /** The disk of the parent. */
  readonly parent?: Buffer | undefined
}

export type VmdkOpener = (files: VmdkFiles) => OpenDisk

/** The program's own writer, of one thread. */
export const openVmdkWritable: VmdkOpener = files => openVmdkWith(files, writer => writer)

/** The same, with a writer that `change` makes of it. */
export function openVmdkWith(
  { stores, parent }: VmdkFiles,
  change: (writer: VmdkWriter, spec: VmdkSpec) => WritableDriver,
): OpenDisk {
  collectShared()
  const image = stores[0] as WritableStore
  const { spec, extentStores } = specOf(stores)
  const layer = { fd: 0, sizeBytes: image.sizeBytes, format: 'vmdk', spec: spec }
  const memory = createDiskMemory(layer, 1, image)
  const pool = new TablePool(memory.pool as PoolMemory)
  const writer = new VmdkWriter({
    spec,
    image,
    stores: extentStores,
    driver: driverOf(spec, extentStores, pool),
    pool,
    memory: memory.format as VmdkMemory,
    hasParent: parent !== undefined,
  })
  const view = { driver: change(writer, spec), parent: parent && parentView(parent) }
  const disk = new SharedDisk(view, memory, 0, image.path)
  return { disk, read: bracketed(disk, view) }
}

export interface VmdkRead {
  readonly disk: Buffer
  readonly warnings: readonly string[]
}

/** Returns the disk as a reader of the files sees it. Throws what opening or reading throws. */
export function readVmdk({ stores, parent }: VmdkFiles<Store>): VmdkRead {
  const { spec, extentStores, warnings } = specOf(stores)
  const driver = driverOf(spec, extentStores)
  return { disk: readAll({ driver, parent: parent && parentView(parent) }), warnings }
}

/** A file's descriptor is its place among the stores. */
function specOf<S extends Store>(
  stores: readonly S[],
): { spec: VmdkSpec; extentStores: (S | undefined)[]; warnings: string[] } {
  const files = stores.map(({ path, sizeBytes }, fd): FileSpec => {
    const modified = { seconds: 0, nanoseconds: 0 }
    return { path, fd, sizeBytes, allocatedBytes: sizeBytes, modified, mode: 0o600, gid: 0 }
  })
  const warnings: string[] = []
  const spec = openVmdk(files[0] as FileSpec, {
    storeOf: ({ fd }) => stores[fd] as S,
    open: fileName => {
      const file = files.find(({ path }) => path === fileName)
      if (!file) throw new Error(`there is no file ${fileName}`)
      return file
    },
    warn: text => warnings.push(text),
  })
  const extentStores = spec.extents.map(({ file }) => file && stores[file.fd])
  return { spec, extentStores, warnings }
}

const CACHE_BYTES = 2 ** 20

function driverOf(
  spec: VmdkSpec,
  stores: readonly (Store | undefined)[],
  pool?: TablePool,
): VmdkDriver {
  return new VmdkDriver({
    spec,
    stores: stores.map((store, storeId) => store && { store, storeId }),
    layerId: 0,
    metadata: new MetadataCache(CACHE_BYTES, new Float64Array(COUNTS), pool),
    clusters: new ClusterCache(CACHE_BYTES, new Float64Array(COUNTS)),
    isWritten: pool !== undefined,
  })
}
