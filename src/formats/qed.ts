/** QED (QEMU docs/interop/qed_spec.rst): images are recognised, but not read. Little-endian. */
import { layout, u32le, u64le } from '../binary.js'
import { backingNameAt } from './backing-file.js'
import type { ReadPart } from './format.js'

const MAGIC = 'QED\0'
const HEADER = layout({
  magic: u32le,
  clusterBytes: u32le,
  tableClusters: u32le,
  headerClusters: u32le,
  features: u64le,
  compatibleFeatures: u64le,
  autoclearFeatures: u64le,
  l1Offset: u64le,
  sizeBytes: u64le,
  backingNameOffset: u32le,
  backingNameBytes: u32le,
})

export const isQed = (head: Buffer): boolean => head.toString('latin1', 0, MAGIC.length) === MAGIC

/** Returns the name of the backing file; see Format.filesNeeded. */
export function filesNeededByQed(head: Buffer, read: ReadPart): Buffer[] {
  if (!isQed(head) || head.length < HEADER.size) return []
  const { backingNameOffset, backingNameBytes } = HEADER.decode(head)
  return [backingNameAt(read, backingNameOffset, backingNameBytes)]
}
