/** The files of a mount, ready to be read; each thread has its own. */
import { ClusterCache } from '../cache/cluster-cache.js'
import { COUNTS } from '../cache/counts.js'
import { MetadataCache } from '../cache/metadata-cache.js'
import type { FileStore } from '../io/store.js'
import type { CatalogEntry } from './catalog.js'
import { type LayerSpec, storeOf } from './chain.js'
import type { Extent, FormatDriver, View } from './driver.js'
import { Qcow2Driver, type Qcow2Parts } from './qcow2/driver.js'
import { RawDriver } from './raw.js'

export interface CacheSizes {
  /** Bytes of tables. */
  readonly metadataBytes: number
  /** Bytes of decompressed clusters. */
  readonly clusterBytes: number
}

interface OpenLayer {
  readonly spec: LayerSpec
  readonly store: FileStore
  readonly dataStore: FileStore
  view?: View
}

export class ImageSet {
  private readonly metadata: MetadataCache
  private readonly clusters: ClusterCache
  private readonly layers: OpenLayer[]

  /** @param counts where the caches count, COUNTS each */
  constructor(
    layers: readonly LayerSpec[],
    sizes: CacheSizes,
    counts: { metadata: Float64Array; clusters: Float64Array } = {
      metadata: new Float64Array(COUNTS),
      clusters: new Float64Array(COUNTS),
    },
  ) {
    this.metadata = new MetadataCache(sizes.metadataBytes, counts.metadata)
    this.clusters = new ClusterCache(sizes.clusterBytes, counts.clusters)
    this.layers = layers.map(spec => {
      const store = storeOf(spec)
      return { spec, store, dataStore: spec.dataFile ? storeOf(spec.dataFile) : store }
    })
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

  /** What the files from `layer` down take on their disks: no more of a view's data can be real. */
  allocatedBytes(layer: number): number {
    return this.layers
      .slice(layer)
      .reduce(
        (sum, { spec }) => sum + spec.allocatedBytes + (spec.dataFile?.allocatedBytes ?? 0),
        0,
      )
  }

  /** Built from the lowest layer up: a chain may be as deep as a stack of calls. */
  private layerView(index: number): View {
    for (let i = this.layers.length - 1; i >= index; i--) {
      const layer = this.layers[i] as OpenLayer
      layer.view ??= { driver: this.driver(i), parent: this.layers[i + 1]?.view }
    }
    return (this.layers[index] as OpenLayer).view as View
  }

  private parentOf(index: number): View | undefined {
    return index + 1 < this.layers.length ? this.layerView(index + 1) : undefined
  }

  private driver(index: number): FormatDriver {
    const { spec, store } = this.layers[index] as OpenLayer
    const { qcow2 } = spec
    if (!qcow2) return new RawDriver(store)
    const l1 = { offset: qcow2.l1Offset, entries: qcow2.l1Entries }
    return new Qcow2Driver(this.parts(index), l1, qcow2.sizeBytes)
  }

  private parts(index: number): Qcow2Parts {
    const { spec, store, dataStore } = this.layers[index] as OpenLayer
    if (!spec.qcow2) throw new TypeError('a layer without tables has no snapshots')
    const { metadata, clusters } = this
    return { header: spec.qcow2, store, dataStore, storeId: index, metadata, clusters }
  }
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
