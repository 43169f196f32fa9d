/** Decompressed clusters, bounded in bytes: reads of 4 KiB in a row inflate a cluster once. */
import { LRUCache } from 'lru-cache'
import { COUNT } from './counts.js'

export class ClusterCache {
  private readonly clusters: LRUCache<string, Buffer>

  /** A cluster larger than `maxBytes` is never kept. */
  constructor(
    maxBytes: number,
    private readonly counts: Float64Array,
  ) {
    this.clusters = new LRUCache<string, Buffer>({
      maxSize: maxBytes,
      sizeCalculation: cluster => cluster.length,
      dispose: (_cluster, _key, reason) => {
        if (reason === 'evict') this.counts[COUNT.evictions]!++
      },
    })
  }

  /** The cluster packed at `at` of the store `storeId`, made by `unpack` when it is not at hand. */
  get(storeId: number, at: number, unpack: () => Buffer): Buffer {
    const key = `${storeId}:${at}`
    const cached = this.clusters.get(key)
    if (cached !== undefined) {
      this.counts[COUNT.hits]!++
      return cached
    }
    this.counts[COUNT.misses]!++
    const cluster = unpack()
    this.clusters.set(key, cluster)
    this.counts[COUNT.bytes] = this.clusters.calculatedSize
    return cluster
  }
}
