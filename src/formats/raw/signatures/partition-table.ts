/**
 * Recognises partition tables by signatures. Sources: UEFI Specification 2.10, section 5 (MBR, GPT); the headers
 * msdos.h, mac.h, sun.h, sgi.h, aix.h and amiga.h of Linux, block/partitions; FreeBSD sys/disklabel.h.
 */
import { has, hasNumber, type Sample } from './sample.js'

const ENTRIES_AT = 446
const ENTRY_BYTES = 16
const BOOTABLE = 0x80

/** Returns the four entries of a boot sector; undefined if it has no signature, or if the entries make no sense. */
function entriesOf({
  head,
}: Sample): { type: number; start: number; sectors: number }[] | undefined {
  if (!has(head, 510, '\x55\xaa')) return undefined
  const entries = []
  for (let at = ENTRIES_AT; at < 510; at += ENTRY_BYTES) {
    if (head[at] !== 0 && head[at] !== BOOTABLE) return undefined
    const [start, sectors] = [head.readUInt32LE(at + 8), head.readUInt32LE(at + 12)]
    entries.push({ type: head[at + 4] as number, start, sectors })
  }
  return entries
}

/** Reports whether a master boot record has a partition within the disk: no other file has that by chance. */
export function hasPartitions(sample: Sample): boolean {
  const entries = entriesOf(sample) ?? []
  return entries.some(
    ({ type, start, sectors }) =>
      type !== 0 && start > 0 && sectors > 0 && start * 512 < sample.sizeBytes,
  )
}

const SUN_WORDS = 256
const isSun = ({ head }: Sample): boolean => {
  if (!has(head, 508, '\xda\xbe')) return false
  let sum = 0
  for (let word = 0; word < SUN_WORDS; word++) sum ^= head.readUInt16BE(word * 2)
  return sum === 0
}

const BSD_MAGIC = 0x82564557
/** The magic occurs twice in a label, 132 bytes apart. */
const isBsdLabel = ({ head }: Sample): boolean =>
  [0, 64, 128, 512].some(
    at => hasNumber(head, at, BSD_MAGIC, 32) && hasNumber(head, at + 132, BSD_MAGIC, 32),
  )

const RIGID_DISK_BLOCKS = 16
const isAmiga = ({ head }: Sample): boolean =>
  Array.from({ length: RIGID_DISK_BLOCKS }, (_, block) => block * 512).some(at =>
    has(head, at, 'RDSK'),
  )

const TABLES: readonly { name: string; matches: (sample: Sample) => boolean }[] = [
  { name: 'GPT', matches: ({ head }) => has(head, 512, 'EFI PART') || has(head, 4096, 'EFI PART') },
  { name: 'GPT', matches: ({ sizeBytes, read }) => has(read(sizeBytes - 512, 512), 0, 'EFI PART') },
  // A table without entries counts, too: it is there before partitions are made.
  { name: 'MBR', matches: sample => entriesOf(sample) !== undefined },
  {
    name: 'Apple partition map',
    matches: ({ head }) => has(head, 0, 'ER') && (has(head, 512, 'PM') || has(head, 2048, 'PM')),
  },
  { name: 'Sun disk label', matches: isSun },
  { name: 'BSD disk label', matches: isBsdLabel },
  { name: 'SGI volume header', matches: ({ head }) => has(head, 0, '\x0b\xe5\xa9\x41') },
  { name: 'AIX disk label', matches: ({ head }) => has(head, 0, '\xc9\xc2\xd4\xc1') },
  { name: 'Amiga rigid disk', matches: isAmiga },
]

/** Returns the name of a disk's partition table; undefined if it has none. */
export const partitionTableOf = (sample: Sample): string | undefined =>
  TABLES.find(({ matches }) => matches(sample))?.name
