/** The files of a mount, ready to be read; each thread has its own. */
import { ClusterCache } from '../cache/cluster-cache.js'
import { COUNTS } from '../cache/counts.js'
import { MetadataCache } from '../cache/metadata-cache.js'
import { TablePool } from '../cache/table-pool.js'
import { type FileStore, type Store, WritableFileStore, type WritableStore } from '../io/store.js'
import type { CatalogEntry } from './catalog.js'
import { extentFiles, type LayerSpec, storeOf } from './chain.js'
import type { DiskMemory } from './disk-memory.js'
import type { Extent, FormatDriver, View } from './driver.js'
import { Qcow2Driver, type Qcow2Parts } from './qcow2/driver.js'
import type { Qcow2Header } from './qcow2/header.js'
import type { Qcow2Memory } from './qcow2/write-memory.js'
import { Qcow2Writer } from './qcow2/writer.js'
import { RawDriver } from './raw.js'
import { RawWriter } from './raw-writer.js'
import { SharedDisk } from './shared-disk.js'
import { VmdkDriver } from './vmdk/driver.js'
import type { VmdkSpec } from './vmdk/image.js'
import type { WritableDisk } from './writable.js'

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
  /** What the first layer is read from and written to, where that is no file. */
  readonly stores?: WritableStores
}

/** The file of a layer, and where its data are: in the same file, or in an external data file. */
interface Stores<S extends Store> {
  readonly store: S
  readonly dataStore: S
}
export type WritableStores = Stores<WritableStore>

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
    const pool = writing?.memory.qcow2 && new TablePool(writing.memory.qcow2.pool)
    this.metadata = new MetadataCache(sizes.metadataBytes, counts.metadata, pool)
    this.clusters = new ClusterCache(sizes.clusterBytes, counts.clusters)
    const [top, ...below] = layers as readonly [LayerSpec, ...LayerSpec[]]
    const written = writing && (writing.stores ?? writableStores(top, writing.memory))
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
    { memory, thread }: Writing,
    { store, dataStore }: WritableStores,
    pool: TablePool | undefined,
  ): WritableDisk {
    const layer = this.layers[0] as OpenLayer
    const parent = this.parentOf(0)
    const reader = this.driver(0)
    const driver =
      reader instanceof Qcow2Driver
        ? new Qcow2Writer({
            header: layer.spec.qcow2 as Qcow2Header,
            driver: reader,
            store,
            dataStore,
            storeId: 0,
            metadata: this.metadata,
            pool: pool as TablePool,
            memory: memory.qcow2 as Qcow2Memory,
            hasParent: parent !== undefined,
          })
        : new RawWriter(store)
    const view = { driver, parent }
    layer.view = view
    return new SharedDisk(view, memory, thread, layer.spec.path)
  }

  private driver(index: number): FormatDriver {
    const { spec, store, extentId } = this.layers[index] as OpenLayer
    const { qcow2, vmdk } = spec
    if (vmdk) return this.vmdkDriver(vmdk, index, extentId)
    if (!qcow2) return new RawDriver(store)
    const l1 = { offset: qcow2.l1Offset, entries: qcow2.l1Entries }
    return new Qcow2Driver(this.parts(index), l1, qcow2.sizeBytes)
  }

  private vmdkDriver(spec: VmdkSpec, layerId: number, extentId: number): VmdkDriver {
    const { metadata, clusters } = this
    let storeId = extentId
    const stores = spec.extents.map(
      ({ file }) => file && { store: storeOf(file), storeId: storeId++ },
    )
    return new VmdkDriver({ spec, stores, layerId, metadata, clusters })
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
  const store = storeOf(spec)
  return { store, dataStore: spec.dataFile ? storeOf(spec.dataFile) : store }
}

function writableStores({ path, fd, dataFile }: LayerSpec, memory: DiskMemory): WritableStores {
  const store = new WritableFileStore(path, fd, new BigInt64Array(memory.sizes, 0, 1))
  if (!dataFile) return { store, dataStore: store }
  const size = new BigInt64Array(memory.sizes, 8, 1)
  return { store, dataStore: new WritableFileStore(dataFile.path, dataFile.fd, size) }
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
