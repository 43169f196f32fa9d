/** How large a new image may become, by the formula of qemu-img measure (QEMU docs/interop/qcow2.rst for the tables). */
import { luks1Bytes } from '../../crypto/luks1-write.js'
import type { Store } from '../../io/store.js'
import type { BitmapShape, MeasuredImage, Measurement, OptionValues } from '../creating.js'
import { unitsTouched } from '../units-touched.js'
import { bitmapBytesFor } from './bitmap-table.js'
import { BITMAP_ENTRY, readBitmaps } from './bitmaps.js'
import type { Qcow2Header } from './header.js'
import { l1EntriesOf, type Qcow2Shape, shapeOf } from './create/options.js'

const roundUp = (value: number, unit: number): number => Math.ceil(value / unit) * unit

/** All tables of the disk count, also those that it does not need yet. Throws UsageError. */
export function measureQcow2({ sizeBytes, options, data }: MeasuredImage): Measurement {
  const shape = shapeOf({ options, backing: undefined })
  l1EntriesOf(shape, sizeBytes)
  const cluster = 2 ** shape.clusterBits
  const whole = roundUp(sizeBytes, cluster)
  const luks = shape.luks ? roundUp(luks1Bytes(shape.luks), cluster) : 0
  const fullyAllocated = whole + tableBytes(shape, whole) + luks
  const isFull = shape.preallocation === 'falloc' || shape.preallocation === 'full'
  const used = isFull ? whole : unitsTouched(data, cluster) * cluster
  return { required: fullyAllocated - whole + used, fullyAllocated }
}

function tableBytes({ clusterBits, isExtended, refcountOrder }: Qcow2Shape, whole: number): number {
  const cluster = 2 ** clusterBits
  const entryBytes = isExtended ? 16 : 8
  const l2Bytes = roundUp(whole / cluster, cluster / entryBytes) * entryBytes
  const l1Bytes = roundUp(l2Bytes / cluster, cluster / 8) * 8
  const meta = cluster + l2Bytes + l1Bytes
  return meta + countBytes((meta + whole) / cluster, cluster, refcountOrder)
}

/** Returns the size of the refcount table and its blocks, which count themselves, too. */
function countBytes(clusters: number, cluster: number, order: number): number {
  const perBlock = (cluster * 8) / 2 ** order
  let own = 0
  for (let last = -1; own !== last; ) {
    last = own
    const blocks = Math.ceil((clusters + own) / perBlock)
    own = blocks + Math.ceil(blocks / (cluster / 8))
  }
  return own * cluster
}

/** Returns the shapes of the bitmaps that were closed; undefined for version 2, which knows no bitmaps. Throws ImageError. */
export function bitmapShapes(store: Store, spec: unknown): BitmapShape[] | undefined {
  const header = spec as Qcow2Header
  if (header.version === 2) return undefined
  return readBitmaps(store, header)
    .filter(({ isInUse }) => !isInUse)
    .map(({ name, granularityBytes }) => ({
      nameBytes: name.length,
      bitBytes: bitmapBytesFor(header.sizeBytes, Math.log2(granularityBytes)),
    }))
}

/** Counts all clusters of the bits, their tables, and the directory. Throws UsageError. */
export function measureBitmaps(
  options: OptionValues,
  bitmaps: readonly BitmapShape[],
): number | undefined {
  const { clusterBits, version } = shapeOf({ options, backing: undefined })
  if (version === 2) return undefined
  const cluster = 2 ** clusterBits
  let directoryBytes = 0
  let bytes = 0
  for (const { nameBytes, bitBytes } of bitmaps) {
    const clusters = Math.ceil(bitBytes / cluster)
    bytes += clusters * cluster + roundUp(clusters * 8, cluster)
    directoryBytes += roundUp(BITMAP_ENTRY.size + nameBytes, 8)
  }
  return bytes + roundUp(directoryBytes, cluster)
}
