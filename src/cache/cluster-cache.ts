/** A cache of decompressed clusters, bounded in bytes: consecutive reads of 4 KiB decompress a cluster once. */
import { LRUCache } from 'lru-cache'
import { STATISTIC } from './statistics.js'

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
        if (reason === 'evict') this.counts[STATISTIC.evictions]!++
      },
    })
  }

  /** Returns the cluster that is packed at `at` of the store `storeId`, if it is cached. */
  find(storeId: number, at: number): Buffer | undefined {
    const cached = this.clusters.get(`${storeId}:${at}`)
    this.counts[cached === undefined ? STATISTIC.misses : STATISTIC.hits]!++
    return cached
  }

  /** Returns the cluster that is packed at `at` of the store `storeId`; calls `unpack` if it is not cached. */
  get(storeId: number, at: number, unpack: () => Buffer): Buffer {
    const cached = this.find(storeId, at)
    if (cached !== undefined) return cached
    const cluster = unpack()
    this.clusters.set(`${storeId}:${at}`, cluster)
    this.counts[STATISTIC.bytes] = this.clusters.calculatedSize
    return cluster
  }
}
