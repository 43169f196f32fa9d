/** Writes an empty image (QEMU docs/interop/qcow2.rst), for disks that are thrown away. */
import type { WritableStore } from '../../io/store.js'
import { setCount } from './refcount-bits.js'
import { encodeHeader, INCOMPATIBLE, l2CoverageBytes, type Qcow2Header } from './header.js'

const CLUSTER_BITS = 12
/** The least cluster size of images with subclusters ("Extended L2 Entries"). */
const EXTENDED_CLUSTER_BITS = 14
export const BLANK_CLUSTER_BYTES = 2 ** CLUSTER_BITS

/** The header, the refcount table and one block take a cluster each; the L1 table follows. */
const L1_CLUSTER = 3

/**
 * Writes an image with a disk of `diskBytes` bytes, 64 GiB at most, to an empty file. It has small clusters, and the
 * version, L2 entries and counts of `model`. One block counts all clusters.
 */
export function writeBlank(store: WritableStore, model: Qcow2Header, diskBytes: number): void {
  const incompatible = model.incompatible & INCOMPATIBLE.extendedL2
  const clusterBits = incompatible === 0n ? CLUSTER_BITS : EXTENDED_CLUSTER_BITS
  const cluster = 2 ** clusterBits
  const { version, refcountOrder } = model
  const coverage = l2CoverageBytes({ ...model, incompatible, clusterBits })
  const l1Entries = Math.ceil(diskBytes / coverage)
  const clusters = L1_CLUSTER + Math.ceil((l1Entries * 8) / cluster)
  const image = Buffer.alloc(clusters * cluster)
  encodeHeader({
    version,
    clusterBits,
    sizeBytes: diskBytes,
    l1Entries,
    l1Offset: L1_CLUSTER * cluster,
    refcountTableOffset: cluster,
    refcountTableClusters: 1,
    incompatible,
    refcountOrder,
  }).copy(image)
  image.writeBigUInt64BE(BigInt(2 * cluster), cluster)
  const block = image.subarray(2 * cluster, 3 * cluster)
  for (let used = 0; used < clusters; used++) setCount(block, used, refcountOrder, 1)
  store.write(image, 0, image.length, 0)
}
