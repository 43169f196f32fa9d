/** Writes an empty image (QEMU docs/interop/qcow2.rst) that is thrown away after use. */
import { ImageError } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import { MAX_CLUSTER_BITS, MAX_L1_BYTES } from '../limits.js'
import { setCount } from './refcount-bits.js'
import { encodeHeader, INCOMPATIBLE, l2CoverageBytes, type Qcow2Header } from './header.js'

type Shape = Pick<Qcow2Header, 'version' | 'refcountOrder' | 'incompatible' | 'clusterBits'>

/** The header, the refcount table and one block take a cluster each; the L1 table follows. */
const L1_CLUSTER = 3

/** The least clusters of a scratch disk, whose subclusters have 4 KiB, and the largest that an image can have. */
const SCRATCH_CLUSTER_BITS = 17

/**
 * Writes an image with a disk of `diskBytes` bytes to an empty file, to stand on another disk. Its subclusters are so small that
 * writes of pages copy nothing from below. Throws ImageError if the disk is too large.
 */
export function writeScratch(store: WritableStore, diskBytes: number): void {
  const shape = { version: 3, refcountOrder: 4, incompatible: INCOMPATIBLE.extendedL2 } as const
  for (let clusterBits = SCRATCH_CLUSTER_BITS; clusterBits <= MAX_CLUSTER_BITS; clusterBits++) {
    const l1Bytes = Math.ceil(diskBytes / l2CoverageBytes({ ...shape, clusterBits })) * 8
    if (l1Bytes > MAX_L1_BYTES) continue
    writeEmpty(store, { ...shape, clusterBits }, diskBytes)
    return
  }
  const what = `a disk of ${diskBytes} bytes is too large for a scratch copy`
  throw new ImageError('UNSUPPORTED', what, { path: store.path, hint: 'mount it without scratch' })
}

function writeEmpty(store: WritableStore, shape: Shape, diskBytes: number): void {
  const { version, refcountOrder, incompatible, clusterBits } = shape
  const cluster = 2 ** clusterBits
  const coverage = l2CoverageBytes(shape)
  const l1Entries = Math.ceil(diskBytes / coverage)
  const clusters = L1_CLUSTER + Math.ceil((l1Entries * 8) / cluster)
  const header = encodeHeader({
    ...{ version, clusterBits, sizeBytes: diskBytes, incompatible, refcountOrder },
    l1Entries,
    l1Offset: L1_CLUSTER * cluster,
    refcountTableOffset: cluster,
    refcountTableClusters: 1,
  })
  const table = Buffer.alloc(8)
  table.writeBigUInt64BE(BigInt(2 * cluster))
  const block = Buffer.alloc(Math.ceil((clusters * 2 ** refcountOrder) / 8))
  for (let used = 0; used < clusters; used++) setCount(block, used, refcountOrder, 1)
  // The rest is zeros, which take no space.
  store.truncate(clusters * cluster)
  for (const [index, bytes] of [header, table, block].entries()) {
    store.write(bytes, 0, bytes.length, index * cluster)
  }
}
