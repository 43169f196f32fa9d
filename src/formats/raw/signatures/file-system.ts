/**
 * Recognises file systems, and other content of whole disks, by signatures.
 *
 * Sources: Linux, include/uapi/linux/magic.h and the headers of its file systems; each project's description
 * of its format on the disk (ext4, xfs, btrfs, F2FS, NILFS2, OpenZFS, LUKS 1 and 2, LVM2, md, bcache); Microsoft's
 * (FAT, exFAT, NTFS); Apple's (HFS Plus, APFS); FreeBSD's ffs/fs.h.
 */
import { has, hasNumber, type Sample } from './sample.js'

const K = 1024

/** Signatures that are bytes at a fixed place; each character stands for a byte. */
const BYTES: readonly (readonly [name: string, at: number, text: string])[] = [
  ['xfs', 0, 'XFSB'],
  ['btrfs', 64 * K + 64, '_BHRfS_M'],
  ['exfat', 3, 'EXFAT   '],
  ['ntfs', 3, 'NTFS    '],
  ['ReFS', 3, 'ReFS\0'],
  ['BitLocker', 3, '-FVE-FS-'],
  ['fat', 54, 'FAT12   '],
  ['fat', 54, 'FAT16   '],
  ['fat', 54, 'FAT     '],
  ['fat', 82, 'FAT32   '],
  ['LUKS', 0, 'LUKS\xba\xbe'],
  ['squashfs', 0, 'hsqs'],
  ['squashfs', 0, 'sqsh'],
  ['cramfs', 0, '\x45\x3d\xcd\x28'],
  ['cramfs', 0, '\x28\xcd\x3d\x45'],
  ['romfs', 0, '-rom1fs-'],
  ['erofs', K, '\xe2\xe1\xf5\xe0'],
  ['iso9660', 32 * K + 1, 'CD001'],
  ['udf', 32 * K + 1, 'BEA01'],
  ['udf', 32 * K + 1, 'NSR02'],
  ['udf', 32 * K + 1, 'NSR03'],
  ['f2fs', K, '\x10\x20\xf5\xf2'],
  ['f2fs', 5 * K, '\x10\x20\xf5\xf2'],
  ['bcache', 4 * K + 24, '\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81'],
  ['bcachefs', 4 * K + 24, '\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef'],
  ['hfs+', K, 'H+'],
  ['hfsx', K, 'HX'],
  ['hfs', K, 'BD'],
  ['apfs', 32, 'NXSB'],
  ['jfs', 32 * K, 'JFS1'],
  ['reiserfs', 64 * K + 52, 'ReIsErFs'],
  ['reiserfs', 64 * K + 52, 'ReIsEr2Fs'],
  ['reiserfs', 64 * K + 52, 'ReIsEr3Fs'],
  ['reiserfs', 8 * K + 52, 'ReIsErFs'],
  ['reiser4', 64 * K, 'ReIsEr4'],
  ['gfs2', 64 * K, '\x01\x16\x19\x70'],
  ['ocfs2', K, 'OCFSV2'],
  ['ocfs2', 2 * K, 'OCFSV2'],
  ['ocfs2', 4 * K, 'OCFSV2'],
  ['ocfs2', 8 * K, 'OCFSV2'],
  ['VMFS', K * K, '\x0d\xd0\x01\xc0'],
  ['befs', 544, '1SFB'],
  ['hpfs', 8 * K, '\x49\xe8\x95\xf9'],
  ['vxfs', K, '\xf5\xfc\x01\xa5'],
  ['vxfs', 8 * K, '\xa5\x01\xfc\xf5'],
  ['zonefs', 0, 'SFOZ'],
  ['dm-integrity', 0, 'integrt\0'],
  ['dm-verity', 0, 'verity\0\0'],
  ['dm-snapshot', 0, 'SnAp'],
  ['VDO', 0, 'dmvdo001'],
  ['Stratis', 516, '!Stra0tis\x86\xff\x02^'],
  ['BlueStore', 0, 'bluestore block device'],
  ['Oracle ASM', 32, 'ORCLDISK'],
]

const MINIX = [0x137f, 0x138f, 0x2468, 0x2478]
const SWAP = ['SWAPSPACE2', 'SWAP-SPACE', 'S1SUSPEND\0', 'S2SUSPEND\0', 'ULSUSPEND\0', 'LINHIB0001']
const PAGE_SIZES = [4, 8, 16, 32, 64].map(pages => pages * K)
const UFS_AT = [0, 8 * K, 64 * K, 256 * K].map(at => at + 1372)
const MD_MAGIC = 0xa92b4efc
const ZFS_UBERBLOCK = 0x00bab10c

/** The uberblocks of ZFS fill the second half of a label; each has at least a KiB. */
function isZfs({ head }: Sample): boolean {
  for (let at = 128 * K; at + 8 <= Math.min(head.length, 256 * K); at += K) {
    const isLittle = head.readUInt32LE(at) === ZFS_UBERBLOCK && head.readUInt32LE(at + 4) === 0
    const isBig = head.readUInt32BE(at + 4) === ZFS_UBERBLOCK && head.readUInt32BE(at) === 0
    if (isLittle || isBig) return true
  }
  return false
}

/** Superblocks of md versions 1.1 and 1.2 are at the start, those of 0.90 and 1.0 at the end. */
function isMd({ head, sizeBytes, read }: Sample): boolean {
  const atEnd = [
    Math.floor(sizeBytes / (64 * K)) * 64 * K - 64 * K,
    Math.floor((sizeBytes - 8 * K) / (4 * K)) * 4 * K,
  ]
  return (
    hasNumber(head, 0, MD_MAGIC, 32) ||
    hasNumber(head, 4 * K, MD_MAGIC, 32) ||
    atEnd.some(at => at > 0 && hasNumber(read(at, 4), 0, MD_MAGIC, 32))
  )
}

/** The parameters of a boot sector without a name or a signature, as on floppies. */
function isBareFat({ head }: Sample): boolean {
  if (head.length < 512 || (head[0] !== 0xeb && head[0] !== 0xe9)) return false
  const sectorBytes = head.readUInt16LE(11)
  const clusterSectors = head.readUInt8(13)
  const tables = head.readUInt8(16)
  return (
    [512, K, 2 * K, 4 * K].includes(sectorBytes) &&
    clusterSectors > 0 &&
    (clusterSectors & (clusterSectors - 1)) === 0 &&
    head.readUInt16LE(14) > 0 &&
    (tables === 1 || tables === 2) &&
    head.readUInt8(21) >= 0xf0
  )
}

const CHECKS: readonly { name: string; matches: (sample: Sample) => boolean }[] = [
  // The magic of ext2, ext3 and ext4, and a possible block size.
  {
    name: 'ext',
    matches: ({ head }) => has(head, K + 56, '\x53\xef') && head.readUInt32LE(K + 24) <= 6,
  },
  {
    name: 'swap',
    matches: ({ head }) => PAGE_SIZES.some(page => SWAP.some(text => has(head, page - 10, text))),
  },
  {
    name: 'LVM2',
    matches: ({ head }) =>
      [0, 512, 1024, 1536].some(at => has(head, at, 'LABELONE') && has(head, at + 24, 'LVM2 001')),
  },
  { name: 'zfs', matches: isZfs },
  { name: 'md', matches: isMd },
  {
    name: 'ufs',
    matches: ({ head }) =>
      UFS_AT.some(at => hasNumber(head, at, 0x00011954, 32) || hasNumber(head, at, 0x19540119, 32)),
  },
  {
    name: 'nilfs2',
    matches: ({ head }) => has(head, K + 6, '\x34\x34') && has(head, K, '\x02\0\0\0'),
  },
  {
    name: 'minix',
    matches: ({ head }) =>
      (head.length > K + 26 &&
        MINIX.includes(head.readUInt16LE(K + 16)) &&
        has(head, K + 10, '\0\0')) ||
      (has(head, K + 24, '\x5a\x4d') && has(head, K + 12, '\0\0')),
  },
  { name: 'fat', matches: isBareFat },
]

/** Returns the name of the file system, or of another use of a whole disk; undefined if none is known. */
export const fileSystemOf = (sample: Sample): string | undefined =>
  BYTES.find(([, at, text]) => has(sample.head, at, text))?.[0] ??
  CHECKS.find(({ matches }) => matches(sample))?.name
