/**
 * The partition table of a master boot record, with the chain of its logical partitions ("Partition table and boot record",
 * IBM PC AT; the UEFI Specification 2.10, section 5.2.1). The kernel (block/partitions/msdos.c) decides what is unclear.
 */
import { bytes, layout, u8, u32le } from '../../binary.js'
import { type Partition, type PartitionedDisk, readBytes } from './partition.js'

const SECTOR_BYTES = 512
const ENTRY = layout({
  boot: u8,
  firstChs: bytes(3),
  type: u8,
  lastChs: bytes(3),
  start: u32le,
  sectors: u32le,
})
const ENTRIES_AT = 446
const ENTRIES = 4
const DISK_ID_AT = 440
const SIGNATURE_AT = 510
const SIGNATURE = 0xaa55
/** An entry is marked active, or not; other values mean that these bytes are no table. */
const BOOT_FLAGS: readonly number[] = [0, 0x80]
const EXTENDED_TYPES: readonly number[] = [0x05, 0x0f, 0x85]
/** The disk has a GPT. */
const PROTECTIVE_TYPE = 0xee
const FIRST_LOGICAL = 5
/** The longest chain of extended boot records that is followed. */
const MAX_LINKS = 128

/** In sectors of 512 bytes. */
interface Entry {
  readonly boot: number
  readonly type: number
  readonly start: number
  readonly sectors: number
}

export interface Mbr {
  readonly entries: readonly Entry[]
  readonly diskId: number
  /** Whether the disk says that it has a GPT. */
  readonly isProtective: boolean
}

/** Returns the table of the disk's first sector; undefined if that is none, such as the boot sector of a file system. */
export function readMbr(disk: PartitionedDisk): Mbr | undefined {
  const sector = readBytes(disk, 0, SECTOR_BYTES)
  const entries = entriesOf(sector)
  if (!entries?.every(({ boot }) => BOOT_FLAGS.includes(boot)) || isFat(sector)) return undefined
  return {
    entries,
    diskId: sector.readUInt32LE(DISK_ID_AT),
    isProtective: entries.some(({ type }) => type === PROTECTIVE_TYPE),
  }
}

/** Returns the partitions that the table and its chain name. `warn` is told of a chain that leads nowhere. */
export function mbrPartitions(
  disk: PartitionedDisk,
  { entries, diskId }: Mbr,
  warn: (what: string) => void,
): Partition[] {
  const found: Partition[] = []
  const add = (number: number, { type, sectors }: Entry, start: number) => {
    const id = diskId.toString(16).padStart(8, '0')
    found.push({
      number,
      start: start * SECTOR_BYTES,
      size: sectors * SECTOR_BYTES,
      type: hexByte(type),
      label: undefined,
      uuid: diskId === 0 ? undefined : `${id}-${hexByte(number)}`,
    })
  }
  entries.forEach((entry, i) => {
    if (entry.sectors > 0 && entry.type !== 0 && !isExtended(entry)) add(i + 1, entry, entry.start)
  })
  let number = FIRST_LOGICAL
  for (const extended of entries.filter(entry => entry.sectors > 0 && isExtended(entry))) {
    for (const { entry, start } of logicalEntries(disk, extended, warn)) add(number++, entry, start)
  }
  return found
}

/** Yields the entries of logical partitions, and where they start, in sectors. */
function* logicalEntries(
  disk: PartitionedDisk,
  extended: Entry,
  warn: (what: string) => void,
): Generator<{ entry: Entry; start: number }> {
  const end = extended.start + extended.sectors
  const seen = new Set<number>()
  for (let at = extended.start; ; ) {
    if (seen.has(at)) return warn('the chain of logical partitions is a loop')
    if (seen.size === MAX_LINKS) return warn(`there are more than ${MAX_LINKS} logical partitions`)
    seen.add(at)
    const entries = entriesOf(readBytes(disk, at * SECTOR_BYTES, SECTOR_BYTES))
    if (!entries) return warn(`there is no extended boot record in sector ${at}`)
    // Only the first two entries have a meaning: DOS leaves rubbish in the others.
    const [own, other] = entries as [Entry, Entry]
    for (const entry of [own, other]) {
      if (entry.sectors === 0 || entry.type === 0 || isExtended(entry)) continue
      const start = at + entry.start
      if (entry.start === 0 || start + entry.sectors > end) {
        warn(
          `a logical partition of the record in sector ${at} lies outside its extended partition`,
        )
        continue
      }
      yield { entry, start }
    }
    const next = [own, other].find(entry => entry.sectors > 0 && isExtended(entry))
    if (!next) return
    at = extended.start + next.start
    if (at >= end) return warn('the chain of logical partitions leaves its extended partition')
  }
}

/** Returns the four entries of a boot record; undefined if its signature is missing. */
function entriesOf(sector: Buffer): Entry[] | undefined {
  if (sector.readUInt16LE(SIGNATURE_AT) !== SIGNATURE) return undefined
  return Array.from({ length: ENTRIES }, (_, i) =>
    ENTRY.decode(sector, ENTRIES_AT + i * ENTRY.size),
  )
}

const isExtended = ({ type }: Entry): boolean => EXTENDED_TYPES.includes(type)

const hexByte = (value: number): string => value.toString(16).padStart(2, '0')

/** Reports whether the sector is the boot sector of FAT, exFAT or NTFS, whose code may look like entries. */
function isFat(sector: Buffer): boolean {
  const oem = sector.toString('latin1', 3, 11)
  if (oem === 'EXFAT   ' || oem === 'NTFS    ') return true
  const bytesPerSector = sector.readUInt16LE(11)
  const sectorsPerCluster = sector.readUInt8(13)
  const fats = sector.readUInt8(16)
  const media = sector.readUInt8(21)
  const hasJump = sector[0] === 0xeb || sector[0] === 0xe9
  return (
    hasJump &&
    [512, 1024, 2048, 4096].includes(bytesPerSector) &&
    sectorsPerCluster > 0 &&
    (sectorsPerCluster & (sectorsPerCluster - 1)) === 0 &&
    fats > 0 &&
    fats <= 4 &&
    (media === 0xf0 || media >= 0xf8)
  )
}
