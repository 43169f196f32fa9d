/** The fields of the qcow2 header (QEMU docs/interop/qcow2.rst, "Header"). */
import { bits64be, layout, rounded64be, u32be, u64be } from '../../binary.js'

export const V2_HEADER = layout({
  magic: u32be,
  version: u32be,
  backingNameOffset: u64be,
  backingNameBytes: u32be,
  clusterBits: u32be,
  sizeBytes: rounded64be,
  cryptMethod: u32be,
  l1Entries: u32be,
  l1Offset: u64be,
  refcountTableOffset: rounded64be,
  refcountTableClusters: u32be,
  snapshotCount: u32be,
  snapshotsOffset: rounded64be,
})
/** Version 3 has these after the fields of version 2. */
export const V3_FIELDS = layout({
  incompatible: bits64be,
  compatible: bits64be,
  autoclear: bits64be,
  refcountOrder: u32be,
  headerBytes: u32be,
})
/** Where the fields begin, in bytes of the file. */
export const FIELD_AT = { ...V2_HEADER.at, ...afterV2(V3_FIELDS.at) }
/** A later part of version 3, which its shortest header lacks. */
export const COMPRESSION_TYPE_AT = V2_HEADER.size + V3_FIELDS.size

function afterV2<K extends string>(at: Readonly<Record<K, number>>): Readonly<Record<K, number>> {
  const places = Object.entries<number>(at).map(([name, place]) => [name, V2_HEADER.size + place])
  return Object.fromEntries(places)
}
