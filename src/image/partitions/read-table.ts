/** Reads a disk's partition table, and leaves out what cannot be a partition. */
import { readGpt } from './gpt.js'
import { mbrPartitions, readMbr } from './mbr.js'
import type { Partition, PartitionedDisk, PartitionTable } from './partition.js'

/** The most partitions of a disk. */
const MAX_PARTITIONS = 128

/**
 * Returns the disk's partitions. A partition that lies past the disk's end or on the table itself is left out; of two that
 * overlap, both are. Throws ImageError, SystemError if the disk cannot be read.
 */
export function readPartitionTable(disk: PartitionedDisk): PartitionTable {
  const none = { table: undefined, sectorSize: 512, partitions: [], warnings: [] } as const
  const mbr = readMbr(disk)
  if (!mbr) return none
  const warnings: string[] = []
  const warn = (what: string) => warnings.push(what)
  if (!mbr.isProtective) {
    const said = mbrPartitions(disk, mbr, warn)
    const partitions = sound(said, 1, disk.sizeBytes, warn)
    return { table: 'dos', sectorSize: 512, partitions, warnings }
  }
  const gpt = readGpt(disk)
  if (!gpt) {
    return { ...none, warnings: ['the disk says that it has a GPT, but both copies are damaged'] }
  }
  if (gpt.isBackup) warn('the GPT at the start of the disk is damaged: the one at its end is used')
  const partitions = sound(gpt.partitions, gpt.firstUsable, disk.sizeBytes, warn)
  return { table: 'gpt', sectorSize: gpt.sectorSize, partitions, warnings }
}

/** Returns the partitions that can exist, ascending by number. */
function sound(
  said: readonly Partition[],
  firstUsable: number,
  diskBytes: number,
  warn: (what: string) => void,
): Partition[] {
  const possible = said.filter(({ number, start, size }) => {
    const end = start + size
    if (size <= 0 || end > diskBytes || !Number.isSafeInteger(end)) {
      warn(`partition ${number} ends past the end of the disk: it is left out`)
      return false
    }
    if (start >= firstUsable) return true
    warn(`partition ${number} begins before the first usable sector: it is left out`)
    return false
  })
  const overlapping = new Set<Partition>()
  const sorted = possible.toSorted((a, b) => a.start - b.start)
  let reaching: Partition | undefined
  for (const partition of sorted) {
    if (reaching && partition.start < reaching.start + reaching.size) {
      overlapping.add(partition).add(reaching)
      warn(`partitions ${reaching.number} and ${partition.number} overlap: both are left out`)
    }
    if (!reaching || partition.start + partition.size > reaching.start + reaching.size) {
      reaching = partition
    }
  }
  const left = possible.filter(partition => !overlapping.has(partition))
  if (left.length > MAX_PARTITIONS) {
    warn(`the disk has ${left.length} partitions: the first ${MAX_PARTITIONS} are shown`)
  }
  return left.toSorted((a, b) => a.number - b.number).slice(0, MAX_PARTITIONS)
}
