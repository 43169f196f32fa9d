/** The GUID partition table (UEFI Specification 2.10, section 5.3). */
import { crc32 } from 'node:zlib'
import { bytes, layout, u64le, u32le } from '../../binary.js'
import { type Partition, type PartitionedDisk, readBytes } from './partition.js'

const HEADER = layout({
  signature: bytes(8),
  revision: u32le,
  headerBytes: u32le,
  headerCrc: u32le,
  reserved: u32le,
  ownLba: u64le,
  otherLba: u64le,
  firstUsableLba: u64le,
  lastUsableLba: u64le,
  diskGuid: bytes(16),
  entriesLba: u64le,
  entries: u32le,
  entryBytes: u32le,
  entriesCrc: u32le,
})
const ENTRY = layout({
  type: bytes(16),
  guid: bytes(16),
  firstLba: u64le,
  /** Inclusive. */
  lastLba: u64le,
  attributes: bytes(8),
  name: bytes(72),
})
const SIGNATURE = 'EFI PART'
const CRC_AT = HEADER.at.headerCrc
const MAX_ENTRY_BYTES = 4096
/** The largest array of entries that is read; the usual one has 16 KiB. */
const MAX_ENTRIES_BYTES = 2 ** 20
const SECTOR_SIZES = [512, 4096] as const

export interface Gpt {
  readonly sectorSize: 512 | 4096
  /** Whether the first table is damaged and the one at the disk's end is used. */
  readonly isBackup: boolean
  /** Entries that are in use. */
  readonly partitions: readonly Partition[]
  /** Where the first byte that a partition may use is. */
  readonly firstUsable: number
}

/** Returns the disk's table, from its start, or else from its end; undefined if neither is whole. */
export function readGpt(disk: PartitionedDisk): Gpt | undefined {
  for (const sectorSize of SECTOR_SIZES) {
    const table = tableAt(disk, sectorSize, 1)
    if (table) return { ...table, isBackup: false }
  }
  for (const sectorSize of SECTOR_SIZES) {
    const last = Math.floor(disk.sizeBytes / sectorSize) - 1
    for (const lba of [otherLba(disk, sectorSize), last]) {
      const table = lba > 1 ? tableAt(disk, sectorSize, lba) : undefined
      if (table) return { ...table, isBackup: true }
    }
  }
  return undefined
}

/** Returns where the first header says that the other is; 0 if there is no such header. Its entries may be damaged. */
function otherLba(disk: PartitionedDisk, sectorSize: number): number {
  return headerAt(disk, sectorSize, 1)?.otherLba ?? 0
}

function headerAt(disk: PartitionedDisk, sectorSize: number, lba: number) {
  const at = lba * sectorSize
  if (at + sectorSize > disk.sizeBytes) return undefined
  const sector = readBytes(disk, at, sectorSize)
  const header = HEADER.decode(sector)
  const { headerBytes, ownLba } = header
  if (header.signature.toString('latin1') !== SIGNATURE || ownLba !== lba) return undefined
  if (headerBytes < HEADER.size || headerBytes > sectorSize) return undefined
  const summed = Buffer.from(sector.subarray(0, headerBytes))
  summed.writeUInt32LE(0, CRC_AT)
  return crc32(summed) === header.headerCrc ? header : undefined
}

function tableAt(
  disk: PartitionedDisk,
  sectorSize: 512 | 4096,
  lba: number,
): Omit<Gpt, 'isBackup'> | undefined {
  const header = headerAt(disk, sectorSize, lba)
  if (!header) return undefined
  const { entries, entryBytes, entriesLba, entriesCrc, firstUsableLba } = header
  const isEntrySize =
    entryBytes >= ENTRY.size &&
    entryBytes <= MAX_ENTRY_BYTES &&
    (entryBytes & (entryBytes - 1)) === 0
  if (!isEntrySize || entries * entryBytes > MAX_ENTRIES_BYTES) return undefined
  const at = entriesLba * sectorSize
  if (at + entries * entryBytes > disk.sizeBytes) return undefined
  const array = readBytes(disk, at, entries * entryBytes)
  if (crc32(array) !== entriesCrc) return undefined
  const partitions: Partition[] = []
  for (let i = 0; i < entries; i++) {
    const entry = ENTRY.decode(array, i * entryBytes)
    if (entry.type.every(byte => byte === 0)) continue
    const [name = ''] = entry.name.toString('utf16le').split('\0')
    partitions.push({
      number: i + 1,
      start: entry.firstLba * sectorSize,
      size: (entry.lastLba - entry.firstLba + 1) * sectorSize,
      type: guidText(entry.type),
      label: name === '' ? undefined : name,
      uuid: guidText(entry.guid),
    })
  }
  return { sectorSize, partitions, firstUsable: firstUsableLba * sectorSize }
}

/** Returns a GUID as text: its first three fields are little-endian (appendix A). */
function guidText(guid: Buffer): string {
  const fields = [
    guid.readUInt32LE(0).toString(16).padStart(8, '0'),
    guid.readUInt16LE(4).toString(16).padStart(4, '0'),
    guid.readUInt16LE(6).toString(16).padStart(4, '0'),
    guid.toString('hex', 8, 10),
    guid.toString('hex', 10, 16),
  ]
  return fields.join('-').toUpperCase()
}
