/** Compressed clusters of qcow and qcow2, read through the cache of decompressed ones. */
import type { ClusterCache } from '../cache/cluster-cache.js'
import type { Store } from '../io/store.js'
import type { Extent } from './driver.js'
import { type Compression, unpackFrom } from './qcow2/inflate.js'

export interface PackedCluster {
  readonly store: Store
  readonly storeId: number
  readonly clusters: ClusterCache
  /** Where its bytes are in `store`, and how many there may be. */
  readonly at: number
  readonly packedBytes: number
  readonly compression: Compression
  /** What it makes. */
  readonly clusterBytes: number
}

/**
 * The extent of a cluster's bytes from `skip` on, `length` at most.
 * @param located runs what reads; it names the place on the disk where that throws
 */
export function packedExtent(
  { store, storeId, clusters, at, packedBytes, compression, clusterBytes }: PackedCluster,
  skip: number,
  length: number,
  located: <T>(read: () => T) => T,
): Extent {
  const unpackInto = (target: Buffer) => unpackFrom(store, at, packedBytes, compression, target)
  const unpack = () =>
    clusters.get(storeId, at, () => {
      const cluster = Buffer.allocUnsafeSlow(clusterBytes)
      unpackInto(cluster)
      return cluster
    })
  return {
    kind: 'packed',
    length: Math.min(length, clusterBytes - skip),
    skip,
    wholeBytes: clusterBytes,
    packed: { storeId, at, packedBytes, compression },
    unpack: () => located(unpack),
    unpackInto: target =>
      located(() => {
        const cached = clusters.find(storeId, at)
        if (cached) cached.copy(target)
        else unpackInto(target)
      }),
  }
}
