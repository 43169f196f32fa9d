/** The files of a mount, ready to be read; each thread has its own. */
import { ClusterCache } from '../cache/cluster-cache.js'
import { COUNTS } from '../cache/counts.js'
import { MetadataCache } from '../cache/metadata-cache.js'
import { TablePool } from '../cache/table-pool.js'
import { CipherStore, WritableCipherStore } from '../io/cipher-store.js'
import { type FileStore, type Store, WritableFileStore, type WritableStore } from '../io/store.js'
import type { CatalogEntry } from './catalog.js'
import { extentFiles, type FileSpec, filesOf, type LayerSpec, storeOf } from './layer.js'
import type { DiskMemory } from './disk-memory.js'
import { CowDriver } from '../formats/cow/driver.js'
import { CowWriter } from '../formats/cow/writer.js'
import type { Extent, FormatDriver, View } from '../formats/driver.js'
import { cipherOf } from './encryption.js'
import { QcowDriver } from '../formats/qcow/driver.js'
import { QcowWriter } from '../formats/qcow/writer.js'
import { Qcow2Driver, type Qcow2Parts } from '../formats/qcow2/driver.js'
import type { Qcow2Memory } from '../formats/qcow2/write-memory.js'
import { Qcow2Writer } from '../formats/qcow2/writer.js'
import { ProbedRawWriter } from '../formats/raw/probed-writer.js'
import { RawDriver } from '../formats/raw/driver.js'
import { RawWriter } from '../formats/raw/writer.js'
import { SharedDisk } from './shared-disk.js'
import { VmdkDriver } from '../formats/vmdk/driver.js'
import type { VmdkSpec } from '../formats/vmdk/image.js'
import type { VmdkMemory } from '../formats/vmdk/write-memory.js'
import { VmdkWriter } from '../formats/vmdk/writer.js'
import type { WritableDisk, WritableDriver } from '../formats/writable.js'

export interface CacheSizes {
  /** Bytes of tables. */
  readonly metadataBytes: number
  /** Bytes of decompressed clusters. */
  readonly clusterBytes: number
}

/** One thread's part in writing. */
export interface Writing {
  readonly memory: DiskMemory
  /** 0 to the number of threads - 1; the main thread takes the last. */
  readonly thread: number
  /** See DiskHooks. */
  readonly onStall?: (seconds: number) => void
}

/**
 * The file of a layer, and where its data are: in the same file, or in an external data file; where they
 * are encrypted, as a store that decrypts.
 */
interface Stores<S extends Store> {
  readonly store: S
  readonly dataStore: S
  /** Of each extent of a vmdk. */
  readonly extents?: readonly (S | undefined)[]
}
interface WritableStores extends Stores<WritableStore> {
  readonly files: readonly WritableFileStore[]
}

interface OpenLayer extends Stores<Store> {
  readonly spec: LayerSpec
  /** What the first of its extents' files is called in the caches; the others follow. */
  readonly extentId: number
  view?: View
}

export class ImageSet {
  private readonly metadata: MetadataCache
  private readonly clusters: ClusterCache
  private readonly layers: readonly OpenLayer[]
  private readonly isWritten: boolean

  /** The first layer's disk, where it is written. */
  readonly disk?: WritableDisk

  /**
   * @param counts where the caches count, COUNTS each
   * @param writing present where the first layer, which was opened for writing, is written
   */
  constructor(
    layers: readonly LayerSpec[],
    sizes: CacheSizes,
    counts: { metadata: Float64Array; clusters: Float64Array } = {
      metadata: new Float64Array(COUNTS),
      clusters: new Float64Array(COUNTS),
    },
    writing?: Writing,
  ) {
    const pool = writing?.memory.pool && new TablePool(writing.memory.pool)
    this.metadata = new MetadataCache(sizes.metadataBytes, counts.metadata, pool)
    this.clusters = new ClusterCache(sizes.clusterBytes, counts.clusters)
    this.isWritten = writing !== undefined
    const [top, ...below] = layers as readonly [LayerSpec, ...LayerSpec[]]
    const written = writing && writableStores(top, writing.memory)
    // The files of layers are numbered as layers are, those of extents behind them.
    let extentId = layers.length
    const open = (spec: LayerSpec, stores: Stores<Store> = readableStores(spec)) => {
      const layer = { spec, extentId, ...stores }
      extentId += extentFiles(spec).length
      return layer
    }
    this.layers = [open(top, written), ...below.map(spec => open(spec))]
    if (writing && written) this.disk = this.openDisk(writing, written, pool)
  }

  /** What `entry` shows, from its first byte on. Throws ImageError where its table cannot be one. */
  viewOf(entry: CatalogEntry): View {
    if (!entry.table) return this.layerView(entry.layer)
    const driver = new Qcow2Driver(this.parts(entry.layer), entry.table, entry.table.sizeBytes)
    // Behind the disk there is nothing to show through: a VM state is all in its own clusters.
    if (entry.kind === 'vmstate') {
      return { driver: new ShiftedDriver(driver, entry.startOffset), parent: undefined }
    }
    return { driver, parent: this.parentOf(entry.layer) }
  }

  /** Built from the lowest layer up: a chain may be as deep as a stack of calls. */
  private layerView(index: number): View {
    const path: number[] = []
    for (let i: number | undefined = index; i !== undefined; i = this.layers[i]?.spec.below) {
      path.push(i)
    }
    let view: View | undefined
    for (const i of path.reverse()) {
      const layer = this.layers[i] as OpenLayer
      layer.view ??= { driver: this.driver(i), parent: view }
      view = layer.view
    }
    return view as View
  }

  private parentOf(index: number): View | undefined {
    const below = this.layers[index]?.spec.below
    return below === undefined ? undefined : this.layerView(below)
  }

  /** The first layer's view is the one that is written. */
  private openDisk(
    { memory, thread, onStall }: Writing,
    stores: WritableStores,
    pool: TablePool | undefined,
  ): WritableDisk {
    const layer = this.layers[0] as OpenLayer
    const parent = this.parentOf(0)
    const parts = { pool: pool as TablePool, hasParent: parent !== undefined }
    const driver = this.writer(layer.spec, stores, memory, parts)
    const view = { driver, parent }
    layer.view = view
    return new SharedDisk(view, memory, thread, layer.spec.path, { files: stores.files, onStall })
  }

  private writer(
    { qcow2, qcow, cow, vmdk, encryption, isProbed }: LayerSpec,
    { store, dataStore, extents = [] }: WritableStores,
    memory: DiskMemory,
    parts: { pool: TablePool; hasParent: boolean },
  ): WritableDriver {
    const tables = { store, storeId: 0, metadata: this.metadata }
    const isEncrypted = encryption !== undefined
    if (qcow2) {
      return new Qcow2Writer({
        ...parts,
        header: qcow2,
        driver: this.driver(0) as Qcow2Driver,
        ...tables,
        dataStore,
        isEncrypted,
        memory: memory.qcow2 as Qcow2Memory,
      })
    }
    if (qcow) {
      return new QcowWriter({
        ...parts,
        ...tables,
        header: qcow,
        driver: this.driver(0) as QcowDriver,
        dataStore,
        isEncrypted,
      })
    }
    if (cow) {
      const driver = this.driver(0) as CowDriver
      return new CowWriter({ ...parts, ...tables, header: cow, driver })
    }
    if (!vmdk) {
      return isProbed ? new ProbedRawWriter(store, memory.refusals) : new RawWriter(store)
    }
    return new VmdkWriter({
      ...parts,
      spec: vmdk,
      image: store,
      stores: extents,
      driver: this.driver(0) as VmdkDriver,
      memory: memory.vmdk as VmdkMemory,
    })
  }

  private driver(index: number): FormatDriver {
    const layer = this.layers[index] as OpenLayer
    const { spec, store, dataStore } = layer
    const { qcow2, qcow, cow, vmdk } = spec
    const { metadata, clusters } = this
    const isWritten = index === 0 && this.isWritten
    const tables = { store, storeId: index, metadata, isWritten }
    if (vmdk) return this.vmdkDriver(vmdk, index, layer)
    if (qcow) return new QcowDriver({ ...tables, header: qcow, dataStore, clusters })
    if (cow) return new CowDriver({ ...tables, header: cow })
    if (!qcow2) return new RawDriver(store)
    const l1 = { offset: qcow2.l1Offset, entries: qcow2.l1Entries }
    return new Qcow2Driver(this.parts(index), l1, qcow2.sizeBytes)
  }

  private vmdkDriver(
    spec: VmdkSpec,
    layerId: number,
    { extentId, extents = [] }: OpenLayer,
  ): VmdkDriver {
    const { metadata, clusters } = this
    let storeId = extentId
    const stores = extents.map(store => store && { store, storeId: storeId++ })
    const isWritten = layerId === 0 && this.isWritten
    return new VmdkDriver({ spec, stores, layerId, metadata, clusters, isWritten })
  }

  private parts(index: number): Qcow2Parts {
    const { spec, store, dataStore } = this.layers[index] as OpenLayer
    if (!spec.qcow2) throw new TypeError('a layer without tables has no snapshots')
    const { metadata, clusters } = this
    return { header: spec.qcow2, store, dataStore, storeId: index, metadata, clusters }
  }
}

/** What compressed bytes are read from, by the ids that extents of this layers' views have. */
export const packedStores = (layers: readonly LayerSpec[]): FileStore[] =>
  [...layers, ...layers.flatMap(extentFiles)].map(storeOf)

function readableStores(spec: LayerSpec): Stores<Store> {
  const stores = storesOf(spec, storeOf)
  const cipher = cipherOf(spec)
  return cipher ? { ...stores, dataStore: new CipherStore(stores.dataStore, cipher) } : stores
}

/** Threads that write a file share its size. */
function writableStores(spec: LayerSpec, { sizes }: DiskMemory): WritableStores {
  const stores = filesOf(spec).map(({ path, fd }, index) => {
    const size = new BigInt64Array(sizes, 8 * index, 1)
    return [fd, new WritableFileStore(path, fd, size)] as const
  })
  const byFile = new Map(stores)
  const files = [...byFile.values()]
  const written = {
    files,
    ...storesOf<WritableStore>(spec, ({ fd }) => byFile.get(fd) as WritableFileStore),
  }
  const cipher = cipherOf(spec)
  if (!cipher) return written
  return { ...written, dataStore: new WritableCipherStore(written.dataStore, cipher) }
}

function storesOf<S extends Store>(spec: LayerSpec, open: (file: FileSpec) => S): Stores<S> {
  const { dataFile, vmdk } = spec
  const store = open(spec)
  const dataStore = dataFile ? open(dataFile) : store
  if (!vmdk) return { store, dataStore }
  return { store, dataStore, extents: vmdk.extents.map(({ file }) => file && open(file)) }
}

/** A disk without its first `startOffset` bytes. */
class ShiftedDriver implements FormatDriver {
  readonly sizeBytes: number
  readonly unitBytes: number

  constructor(
    private readonly driver: FormatDriver,
    private readonly startOffset: number,
  ) {
    this.sizeBytes = driver.sizeBytes - startOffset
    this.unitBytes = driver.unitBytes
  }

  lookup(offset: number, length: number): Extent {
    return this.driver.lookup(this.startOffset + offset, length)
  }
}
