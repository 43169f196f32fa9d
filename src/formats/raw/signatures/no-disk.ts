/**
 * Recognises files that are not disks by signatures: compressed files, archives, optical discs and programs. Writing to one as
 * to a disk would destroy it.
 *
 * Sources: RFC 1952 (gzip), RFC 8878 (zstd), the descriptions of the xz, bzip2, lz4, 7z, ZIP and RAR formats;
 * POSIX.1-2017, pax (tar, cpio); ECMA-119 (ISO 9660); the ELF and PE specifications.
 */
import { hasPartitions } from './partition-table.js'
import { has, type Sample } from './sample.js'

export interface NoDisk {
  /** The name for messages, with its article. */
  readonly name: string
  /** The way out for the user, as the end of a sentence. */
  readonly hint: string
}

interface Signature extends NoDisk {
  readonly matches: (sample: Sample) => boolean
}

/** How many of the first bytes are used. */
export const NO_DISK_BYTES = 36 * 1024

const starts =
  (...texts: string[]) =>
  ({ head }: Sample): boolean =>
    texts.some(text => has(head, 0, text))

const packed = (name: string, tool: string, ...texts: string[]): Signature => ({
  name: `a file that is compressed with ${name}`,
  hint: `unpack it with ${tool}, and name the disk`,
  matches: starts(...texts),
})
const archive = (name: string, tool: string, matches: Signature['matches']): Signature => ({
  name,
  hint: `take the disk out of it with ${tool}, and name that`,
  matches,
})
const converted = (name: string, tool: string, matches: Signature['matches']): Signature => ({
  name,
  hint: `make a raw image of it with ${tool}`,
  matches,
})
const program = (name: string, matches: Signature['matches']): Signature => ({
  name,
  hint: 'name a disk image',
  matches,
})

/** Recognises tar archives without a magic by the checksum of the first header, whose own 8 bytes count as blanks. */
function isOldTar({ head }: Sample): boolean {
  if (head.length < 512 || head[0] === 0) return false
  const stated = /^ *([0-7]{1,7})[ \0]/.exec(head.toString('latin1', 148, 156))?.[1]
  if (stated === undefined) return false
  let sum = 8 * 0x20
  for (let at = 0; at < 512; at++) if (at < 148 || at >= 156) sum += head[at] as number
  return sum === Number.parseInt(stated, 8)
}

const PE_HEADER_AT = 0x3c
const isPe = ({ head }: Sample): boolean =>
  has(head, 0, 'MZ') &&
  head.length >= PE_HEADER_AT + 4 &&
  has(head, head.readUInt32LE(PE_HEADER_AT), 'PE\0\0')

/** Recognises the header of .lzma: usual properties, a dictionary size, and an unknown or possible size. */
const isLzma = ({ head }: Sample): boolean =>
  has(head, 0, '\x5d\0\0') &&
  head.length >= 13 &&
  (head.readBigUInt64LE(5) === 0xffff_ffff_ffff_ffffn || head.readBigUInt64LE(5) < 1n << 44n) &&
  head.readUInt32LE(1) >= 1 << 16

const ISO_AT = 32 * 1024
const isIso = ({ head }: Sample): boolean =>
  has(head, ISO_AT + 1, 'CD001') &&
  ([0, 1, 2, 3, 255] as (number | undefined)[]).includes(head[ISO_AT])

const TAR = {
  name: 'a tar archive',
  hint: 'name the disk in it, FILE::DISK (tar -tf lists what it has)',
}

const SIGNATURES: readonly Signature[] = [
  packed('gzip', 'gunzip -k', '\x1f\x8b\x08'),
  packed('xz', 'unxz -k', '\xfd7zXZ\0'),
  {
    ...packed('bzip2', 'bunzip2 -k'),
    matches: ({ head }) =>
      has(head, 0, 'BZh') &&
      (has(head, 4, '\x31\x41\x59\x26\x53\x59') || has(head, 4, '\x17\x72\x45\x38\x50\x90')),
  },
  packed('zstd', 'unzstd', '\x28\xb5\x2f\xfd'),
  packed('lz4', 'unlz4', '\x04\x22\x4d\x18', '\x02\x21\x4c\x18'),
  packed('lzip', 'lzip -dk', 'LZIP\x01'),
  packed('lzop', 'lzop -d', '\x89LZO\0\r\n\x1a\n'),
  packed('compress', 'gunzip -k', '\x1f\x9d'),
  { ...packed('lzma', 'unlzma -k'), matches: isLzma },
  archive('a 7z archive', '7z x', starts('7z\xbc\xaf\x27\x1c')),
  archive('a zip archive', 'unzip', starts('PK\x03\x04', 'PK\x05\x06', 'PK\x07\x08')),
  archive('a rar archive', 'unrar x', starts('Rar!\x1a\x07')),
  {
    ...TAR,
    name: 'a tar archive (an .ova, perhaps)',
    matches: ({ head }) => has(head, 257, 'ustar'),
  },
  { ...TAR, matches: isOldTar },
  archive(
    'a cpio archive',
    'cpio -id',
    starts('070701', '070702', '070707', '\xc7\x71', '\x71\xc7'),
  ),
  archive('an ar archive', 'ar x', starts('!<arch>\n')),
  archive('a cabinet', 'cabextract', starts('MSCF\0\0\0\0')),
  archive('a Windows image (WIM)', 'wimapply', starts('MSWIM\0\0\0')),
  archive('an archive of Proxmox (VMA)', 'vma extract', starts('VMA\0')),
  converted('an EnCase image', 'ewfexport', starts('EVF\x09\x0d\x0a\xff\0', 'EVF2\x0d\x0a\x81\0')),
  converted('a sparse image of Android', 'simg2img', starts('\x3a\xff\x26\xed')),
  converted('an image of partclone', 'partclone.restore', starts('partclone-image')),
  converted('a disk image of macOS (dmg)', 'dmg2img', ({ sizeBytes, read }) =>
    has(read(sizeBytes - 512, 4), 0, 'koly'),
  ),
  program('a program (ELF)', starts('\x7fELF')),
  program('a program (PE)', isPe),
  program('a script', starts('#!')),
]

const ISO: NoDisk = {
  name: 'an optical disc (ISO 9660)',
  hint: 'mount it with mount -o loop,ro',
}

/**
 * Returns which of these `sample` is; undefined if it is none. A disk with partitions may have anything in its boot sector.
 * Optical discs may have partitions, too, so that they can be started from other media.
 */
export function noDiskOf(sample: Sample): NoDisk | undefined {
  if (isIso(sample)) return ISO
  return hasPartitions(sample) ? undefined : SIGNATURES.find(({ matches }) => matches(sample))
}
