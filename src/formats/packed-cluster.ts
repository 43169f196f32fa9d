/** Compressed clusters of qcow and qcow2, read through the cache of decompressed ones. */
import type { ClusterCache } from '../cache/cluster-cache.js'
import type { Store } from '../io/store.js'
import type { Extent, PackedPlace } from './driver.js'
import { type Compression, unpackFrom, zstdFrame } from './inflate.js'
import { naming } from './damage.js'

const COMPRESSIONS: readonly Compression[] = ['zlib', 'zstd']

export interface PackedCluster {
  /** The name of the format. */
  readonly format: string
  readonly store: Store
  readonly storeId: number
  readonly clusters: ClusterCache
  /** The place of its bytes in `store`, and the most bytes that it may have. */
  readonly at: number
  readonly packedBytes: number
  readonly compression: Compression
  /** The size of the decompressed cluster. */
  readonly clusterBytes: number
}

/** Returns the extent of a cluster's bytes from `skip` on, at most `length`. */
export function packedExtent(
  { format, store, storeId, clusters, at, packedBytes, compression, clusterBytes }: PackedCluster,
  skip: number,
  length: number,
): Extent {
  const unpackInto = (target: Buffer) =>
    naming(store.path, () => unpackFrom(store, at, packedBytes, compression, target))
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
    job: { format, storeId, numbers: [at, packedBytes, COMPRESSIONS.indexOf(compression)] },
    unpack,
    unpackInto: target => {
      const cached = clusters.find(storeId, at)
      if (cached) cached.copy(target)
      else unpackInto(target)
    },
  }
}

/** Does the job of such an extent. Throws ImageError, SystemError. */
export function unpackCluster(store: Store, numbers: readonly number[], target: Buffer): void {
  const [at, packedBytes, compression] = numbers as [number, number, number]
  unpackFrom(store, at, packedBytes, COMPRESSIONS[compression] as Compression, target)
}

/** Returns where the compressed bytes of such an extent lie. */
export function clusterPlace(numbers: readonly number[], wholeBytes: number): PackedPlace {
  const [at, length, compression] = numbers as [number, number, number]
  const isZstd = COMPRESSIONS[compression] === 'zstd'
  const streamOf = (bytes: Buffer) => {
    const stream = isZstd ? zstdFrame(bytes) : bytes
    const type = isZstd ? ('zstd' as const) : ('deflate' as const)
    return stream && { type, bytes: stream, neededBytes: wholeBytes }
  }
  return { at, length, streamOf }
}
