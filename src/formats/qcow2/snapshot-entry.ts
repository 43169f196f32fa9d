/** The layout of an entry of the snapshot table (QEMU docs/interop/qcow2.rst, "Snapshots"). */
import { bits64be, type Field, layout, rounded64be, u16be, u32be } from '../../binary.js'

/** The first part of every entry. Extra data, the ID and the name follow. */
const FIXED = layout({
  l1Offset: rounded64be,
  l1Entries: u32be,
  idBytes: u16be,
  nameBytes: u16be,
  dateSeconds: u32be,
  dateNanoseconds: u32be,
  guestNanoseconds: bits64be,
  shortVmStateBytes: u32be,
  extraBytes: u32be,
})
/** The known extra data, in order. Version 3 requires the first two fields. */
const EXTRA = layout({ vmStateBytes: bits64be, sizeBytes: rounded64be, icount: bits64be })

/** The size of the part that every entry has, in bytes. */
export const SNAPSHOT_FIXED_BYTES = FIXED.size
/** The bytes of extra data that version 3 requires: the sizes of the VM state and of the disk. */
export const SNAPSHOT_REQUIRED_EXTRA_BYTES = EXTRA.at.icount
/** Entries begin at multiples of this many bytes. */
const ALIGNMENT = 8

export interface SnapshotEntry {
  /** The place of its L1 table in the file; rounded above 2^53. */
  readonly l1Offset: number
  readonly l1Entries: number
  /** At most 65535 bytes, like the name; usually UTF-8. */
  readonly id: Buffer
  readonly name: Buffer
  /** Seconds since 1970. */
  readonly dateSeconds: number
  readonly dateNanoseconds: number
  /** How long the guest had run, in nanoseconds. */
  readonly guestNanoseconds: bigint
  readonly vmStateBytes: bigint
  /** The disk's size, rounded above 2^53; undefined if the entry is too old to contain it. */
  readonly sizeBytes: number | undefined
  /** The number of executed instructions; undefined if the entry does not contain it. */
  readonly icount: bigint | undefined
  /** Extra data of an unknown meaning after these. */
  readonly unknownExtra: Buffer
}

/** The lengths that the fixed part gives, in bytes. */
export interface SnapshotLengths {
  readonly extraBytes: number
  /** The whole entry, without the padding after it. */
  readonly entryBytes: number
}

/** Returns the place of the entry after one that ends at `end`; both in bytes from the start of the table. */
export const nextSnapshotEntry = (end: number): number => Math.ceil(end / ALIGNMENT) * ALIGNMENT

/** Decodes the lengths of the entry at `at` of `bytes`, which contains its fixed part. */
export function snapshotLengths(bytes: Buffer, at = 0): SnapshotLengths {
  const extraBytes = u32be.get(bytes, at + FIXED.at.extraBytes)
  const idBytes = u16be.get(bytes, at + FIXED.at.idBytes)
  const nameBytes = u16be.get(bytes, at + FIXED.at.nameBytes)
  return { extraBytes, entryBytes: FIXED.size + extraBytes + idBytes + nameBytes }
}

const NO_BYTES = Buffer.alloc(0)

/** Decodes the entry at `at` of `bytes`, which contains all of it. Its buffers are parts of `bytes`. */
export function decodeSnapshotEntry(bytes: Buffer, at = 0): SnapshotEntry {
  const fixed = FIXED.decode(bytes, at)
  const { idBytes, nameBytes, extraBytes } = fixed
  const extraAt = at + FIXED.size
  const idAt = extraAt + extraBytes
  const nameAt = idAt + idBytes
  // There may be 65536 entries: make no views of what is not there.
  const extra = <T>(name: keyof typeof EXTRA.at, field: Field<T>): T | undefined =>
    extraBytes >= EXTRA.at[name] + field.size
      ? field.get(bytes, extraAt + EXTRA.at[name])
      : undefined
  return {
    l1Offset: fixed.l1Offset,
    l1Entries: fixed.l1Entries,
    id: bytes.subarray(idAt, nameAt),
    name: bytes.subarray(nameAt, nameAt + nameBytes),
    dateSeconds: fixed.dateSeconds,
    dateNanoseconds: fixed.dateNanoseconds,
    guestNanoseconds: fixed.guestNanoseconds,
    vmStateBytes: extra('vmStateBytes', bits64be) ?? BigInt(fixed.shortVmStateBytes),
    sizeBytes: extra('sizeBytes', rounded64be),
    icount: extra('icount', bits64be),
    unknownExtra: extraBytes > EXTRA.size ? bytes.subarray(extraAt + EXTRA.size, idAt) : NO_BYTES,
  }
}

/**
 * Returns the bytes of an entry with the padding after it. Readers that know no extra data see no VM state if its size does not
 * fit into 32 bits, as QEMU writes it. Throws ImageError for a place or a disk's size above 2^53.
 */
export function encodeSnapshotEntry(entry: SnapshotEntry): Buffer {
  const { id, name, vmStateBytes } = entry
  const isLong = vmStateBytes >= 2n ** 32n
  const extra = encodeExtra(entry, isLong)
  const fixed = FIXED.encode({
    ...entry,
    idBytes: id.length,
    nameBytes: name.length,
    shortVmStateBytes: isLong ? 0 : Number(vmStateBytes),
    extraBytes: extra.length,
  })
  const used = fixed.length + extra.length + id.length + name.length
  return Buffer.concat([fixed, extra, id, name], nextSnapshotEntry(used))
}

/** Returns the entry `entry`, with its padding, under another name. All else keeps its bytes. */
export function renamedSnapshotEntry(entry: Buffer, name: Buffer): Buffer {
  const { extraBytes } = snapshotLengths(entry)
  const nameAt = FIXED.size + extraBytes + u16be.get(entry, FIXED.at.idBytes)
  const head = Buffer.from(entry.subarray(0, nameAt))
  u16be.put(head, FIXED.at.nameBytes, name.length)
  return Buffer.concat([head, name], nextSnapshotEntry(nameAt + name.length))
}

function encodeExtra(entry: SnapshotEntry, isLong: boolean): Buffer {
  const { vmStateBytes, sizeBytes, icount, unknownExtra } = entry
  const known = EXTRA.encode({ vmStateBytes, sizeBytes: sizeBytes ?? 0, icount: icount ?? 0n })
  if (sizeBytes === undefined) return known.subarray(0, isLong ? EXTRA.at.sizeBytes : 0)
  if (icount === undefined) return known.subarray(0, EXTRA.at.icount)
  return Buffer.concat([known, unknownExtra])
}
