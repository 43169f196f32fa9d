/** How large a new image may become, by the formula of qemu-img measure (QEMU docs/interop/qcow2.rst for the tables). */
import { luks1Bytes } from '../../crypto/luks1-write.js'
import type { MeasuredImage, Measurement } from '../creating.js'
import { unitsTouched } from '../units-touched.js'
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
