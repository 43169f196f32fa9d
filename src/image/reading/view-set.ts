/** The files of a mount, ready to read. Each thread has its own set. */
import { ClusterCache } from '../../cache/cluster-cache.js'
import { STATISTICS } from '../../cache/statistics.js'
import { MetadataCache } from '../../cache/metadata-cache.js'
import { TablePool } from '../../cache/table-pool.js'
import type { FormatDriver, View } from '../../formats/driver.js'
import type {
  DriverParts,
  FormatWriting,
  LayerSpec,
  NumberedStore,
  SnapshotGuard,
} from '../../formats/format.js'
import { probedName } from '../../formats/probe.js'
import { formatOf } from '../../formats/registry.js'
import type { WritableDisk } from '../../formats/writable.js'
import { CipherStore, WritableCipherStore } from '../../io/cipher-store.js'
import type { FileSpec } from '../../io/file-spec.js'
import type { Store, WritableStore } from '../../io/store.js'
import type { CatalogEntry } from '../catalog.js'
import type { DiskMemory } from '../writing/disk-memory.js'
import { cipherOf } from '../opening/encryption.js'
import { filesOf, storeOf } from '../layer.js'
import { PartitionDisk } from '../writing/partition-disk.js'
import { SharedDisk } from '../writing/shared-disk.js'
import type { WritableView } from '../writing/write-engine.js'
import { ShiftedDriver } from './shifted-driver.js'
import { OPENED_FILES, type StoreSource, type WrittenStore } from '../opening/store-source.js'

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
  /** Changes to the disk: bounds, and those that tests make to see that its faults are noticed. */
  readonly changes?: DiskChanges
}

export interface DiskChanges {
  /** Replaces the view by which the disk is written. */
  view?(view: WritableView): WritableView
  /** Replaces the store of the data. */
  dataStore?(store: WritableStore): WritableStore
}

/** The stores of a layer. */
interface Stores<S extends Store> {
  readonly store: S
  /** The store of the data: the same file, or an external data file. It decrypts encrypted data. */
  readonly dataStore: S
  readonly extentStores: readonly S[]
}
interface WritableStores extends Stores<WritableStore> {
  readonly files: readonly WrittenStore[]
}

interface OpenLayer extends Stores<Store> {
  readonly spec: LayerSpec
  /** The number of the first of its extents' files in the caches; the others follow. */
  readonly extentId: number
  view?: View
}

export class ViewSet {
  private readonly metadata: MetadataCache
  private readonly clusters: ClusterCache
  private readonly layers: readonly OpenLayer[]
  private readonly isWritten: boolean

  /** The first layer's disk, if it is written. */
  readonly disk?: WritableDisk

  /**
   * @param counts the counts of the caches, STATISTICS each
   * @param writing present if the first layer is written; it must be open for writing
   * @param source makes stores of the layers' files
   * @param base the disk that the lowest layer stands on, if that is not one of `layers`
   */
  constructor(
    layers: readonly LayerSpec[],
    sizes: CacheSizes,
    counts: { metadata: Float64Array; clusters: Float64Array } = {
      metadata: new Float64Array(STATISTICS),
      clusters: new Float64Array(STATISTICS),
    },
    writing?: Writing,
    private readonly source: StoreSource = OPENED_FILES,
    private readonly base?: View,
  ) {
    const pool = writing?.memory.pool && new TablePool(writing.memory.pool)
    this.metadata = new MetadataCache(sizes.metadataBytes, counts.metadata, pool)
    this.clusters = new ClusterCache(sizes.clusterBytes, counts.clusters)
    this.isWritten = writing !== undefined
    const [top, ...below] = layers as readonly [LayerSpec, ...LayerSpec[]]
    const written = writing && this.writableStores(top, writing)
    // The files of layers have the numbers of the layers; those of extents come after them.
    let extentId = layers.length
    const open = (spec: LayerSpec, stores: Stores<Store> = this.readableStores(spec)) => {
      const layer = { spec, extentId, ...stores }
      extentId += (spec.extentFiles ?? []).length
      return layer
    }
    this.layers = [open(top, written), ...below.map(spec => open(spec))]
    if (writing && written) this.disk = this.openDisk(writing, written, pool)
  }

  /** Returns the view of `entry`, from its first byte on. Throws ImageError if its table is impossible. */
  viewOf(entry: CatalogEntry): View {
    if (entry.kind !== 'partition') return this.diskView(entry)
    return windowOf(this.diskView(entry), entry.startOffset, entry.sizeBytes)
  }

  /** Returns the part of a written disk that `entry` shows; undefined if it only shows what is read. */
  diskOf(entry: CatalogEntry): WritableDisk | undefined {
    const { disk } = this
    if (entry.kind === 'disk') return disk
    // Those of snapshots are on a table of their own.
    const isOfDisk = entry.kind === 'partition' && entry.layer === 0 && !entry.table
    return isOfDisk
      ? disk && new PartitionDisk(disk, entry.startOffset, entry.sizeBytes)
      : undefined
  }

  /** Returns the guard of the snapshot whose bytes `entry` shows; undefined if it shows none. */
  guardOf({ layer, table }: CatalogEntry): SnapshotGuard | undefined {
    const { store, spec } = this.layers[layer] as OpenLayer
    return table && formatOf(spec).internalSnapshots?.guard(store, spec.spec, table)
  }

  private diskView(entry: CatalogEntry): View {
    if (!entry.table) return this.layerView(entry.layer)
    const parts = this.parts(entry.layer)
    const { internalSnapshots } = formatOf(parts.layer)
    if (!internalSnapshots) throw new TypeError('a format without snapshots has no snapshot tables')
    const driver = internalSnapshots.driver(parts, entry.table)
    // A VM state lies past the end of the disk, in its own clusters, so it has no parent.
    if (entry.kind === 'vmstate') {
      return { driver: new ShiftedDriver(driver, entry.startOffset), parent: undefined }
    }
    return { driver, parent: this.parentOf(entry.layer) }
  }

  /** Returns the view of layer `index`. Builds it from the lowest layer up, without recursion: a chain may be deep. */
  layerView(index: number): View {
    const path: number[] = []
    for (let i: number | undefined = index; i !== undefined; i = this.layers[i]?.spec.below) {
      path.push(i)
    }
    let view = this.base
    for (const i of path.reverse()) {
      const layer = this.layers[i] as OpenLayer
      layer.view ??= { driver: this.driver(i), parent: view }
      view = layer.view
    }
    return view as View
  }

  private parentOf(index: number): View | undefined {
    const below = this.layers[index]?.spec.below
    return below === undefined ? this.base : this.layerView(below)
  }

  /** Opens the first layer for writing. Its view is the one that is written. */
  private openDisk(
    { memory, thread, onStall, changes }: Writing,
    stores: WritableStores,
    pool: TablePool | undefined,
  ): WritableDisk {
    const layer = this.layers[0] as OpenLayer
    const parent = this.parentOf(0)
    const parts = this.parts(0)
    const { writing } = formatOf(layer.spec)
    const driver = (writing as FormatWriting<unknown>).writer({
      ...parts,
      store: stores.store,
      dataStore: stores.dataStore,
      extentStores: stores.extentStores.map((store, i) => ({ store, storeId: layer.extentId + i })),
      driver: this.driver(0),
      pool,
      memory: memory.format,
      hasParent: parent !== undefined,
      probedName,
      refusals: memory.refusals,
    })
    const view = { driver, parent }
    const written = changes?.view?.(view) ?? view
    layer.view = { driver: written.driver, parent }
    return new SharedDisk(written, memory, thread, layer.spec.path, {
      files: stores.files,
      onStall,
    })
  }

  private driver(index: number): FormatDriver {
    const parts = this.parts(index)
    return formatOf(parts.layer).driver(parts)
  }

  private parts(index: number): DriverParts<unknown> {
    const { spec, store, dataStore, extentStores, extentId } = this.layers[index] as OpenLayer
    const { metadata, clusters } = this
    const numbered: NumberedStore[] = extentStores.map((store, i) => ({
      store,
      storeId: extentId + i,
    }))
    const isWritten = index === 0 && this.isWritten
    const stores = { store, storeId: index, dataStore, extentStores: numbered }
    return { layer: spec, ...stores, metadata, clusters, isWritten }
  }

  private readableStores(spec: LayerSpec): Stores<Store> {
    const stores = storesOf(spec, file => this.source.readable(file))
    const cipher = this.source.cipher ? this.source.cipher(spec) : cipherOf(spec)
    return cipher ? { ...stores, dataStore: new CipherStore(stores.dataStore, cipher) } : stores
  }

  /** Threads that write a file share its size. */
  private writableStores(spec: LayerSpec, { memory, changes }: Writing): WritableStores {
    const byFile = new Map(
      filesOf(spec).map((file, index) => [
        file.fd,
        this.source.writable(file, new BigInt64Array(memory.sizes, 8 * index, 1)),
      ]),
    )
    const stores = storesOf(spec, ({ fd }) => byFile.get(fd) as WritableStore)
    const files = [...byFile.values()]
    const cipher = this.source.cipher ? this.source.cipher(spec) : cipherOf(spec)
    const plain = cipher ? new WritableCipherStore(stores.dataStore, cipher) : stores.dataStore
    const dataStore = changes?.dataStore?.(plain) ?? plain
    return { ...stores, files, dataStore }
  }
}

/** The stores that compressed bytes are read from, by the numbers that extents of the layers' views have. */
export const packedStores = (layers: readonly LayerSpec[]): Store[] =>
  [...layers, ...layers.flatMap(({ extentFiles = [] }) => extentFiles)].map(storeOf)

/** Returns `length` bytes of a disk from `offset` on, as a disk. */
export function windowOf({ driver, parent }: View, offset: number, length: number): View {
  return {
    driver: new ShiftedDriver(driver, offset, length),
    parent: parent && windowOf(parent, offset, length),
  }
}

function storesOf<S extends Store>(spec: LayerSpec, open: (file: FileSpec) => S): Stores<S> {
  const { dataFile, extentFiles = [] } = spec
  const store = open(spec)
  return {
    store,
    dataStore: dataFile ? open(dataFile) : store,
    extentStores: extentFiles.map(open),
  }
}
