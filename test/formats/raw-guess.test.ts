/** Which files are taken for raw disks, which of them are written, and which are refused. */
import { randomBytes } from 'node:crypto'
import fs from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import t from 'tap'
import { ImageError, SystemError } from '../../src/errors.js'
import { guessFormat, requireWritableFormat } from '../../src/formats/raw/guess.js'
import { WriteProtected } from '../../src/io/named-file.js'
import { storeOf } from '../../src/image/layer.js'
import type { Store } from '../../src/io/store.js'
import { noise } from '../fixtures/model.js'
import { needs, run, tempFolder } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'

const { EIO } = constants.errno
const K = 1024
const MIB = K * K
const DISK_BYTES = 4 * MIB

/** What a file of these bytes is: how it would be written, or the error. */
const judged = (bytes: Buffer, name = 'disk.img'): string =>
  judgedStore(new MemoryStore(name, bytes))

function judgedStore(store: Store): string {
  try {
    requireWritableFormat(store, undefined)
    return `${guessFormat(store).name}, written`
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    if (!(error instanceof WriteProtected)) return `${error.code}: ${error.message}`
    t.equal(guessFormat(store).name, 'raw')
    return 'read-only'
  }
}

const NOISE = noise(DISK_BYTES, 11)

/** A disk of noise that has these bytes, a character each, where they belong. */
function disk(...places: (readonly [at: number, text: string])[]): Buffer {
  const bytes = Buffer.from(NOISE)
  for (const [at, text] of places) bytes.write(text, at < 0 ? bytes.length + at : at, 'latin1')
  return bytes
}

const partition = (start: number): string => {
  const entry = Buffer.alloc(16)
  entry[4] = 0x83
  entry.writeUInt32LE(start, 8)
  entry.writeUInt32LE(1000, 12)
  return `${entry.toString('latin1')}${'\0'.repeat(48)}\x55\xaa`
}

t.test('files that are known to be a disk', async t => {
  const sun = Buffer.alloc(512)
  sun.write('Sun label')
  sun.writeUInt16BE(0xdabe, 508)
  let sum = 0
  for (let at = 0; at < 510; at += 2) sum ^= sun.readUInt16BE(at)
  sun.writeUInt16BE(sum, 510)
  const label = '\x57\x45\x56\x82'
  const known: Record<string, readonly (readonly [number, string])[]> = {
    MBR: [[446, partition(63)]],
    'an MBR without partitions': [[446, `${'\0'.repeat(64)}\x55\xaa`]],
    GPT: [[512, 'EFI PART']],
    'GPT, sectors of 4096 bytes': [[4096, 'EFI PART']],
    'GPT, the copy at the end': [[-512, 'EFI PART']],
    Apple: [
      [0, 'ER'],
      [512, 'PM'],
    ],
    Sun: [[0, sun.toString('latin1')]],
    BSD: [
      [512, label],
      [644, label],
    ],
    SGI: [[0, '\x0b\xe5\xa9\x41']],
    Amiga: [[1024, 'RDSK']],
    ext4: [
      [1080, '\x53\xef'],
      [1048, '\x02\0\0\0'],
    ],
    xfs: [[0, 'XFSB']],
    btrfs: [[65600, '_BHRfS_M']],
    fat: [[82, 'FAT32   ']],
    exfat: [[3, 'EXFAT   ']],
    ntfs: [[3, 'NTFS    ']],
    swap: [[4086, 'SWAPSPACE2']],
    'swap, pages of 64 KiB': [[65526, 'SWAPSPACE2']],
    LVM2: [
      [512, 'LABELONE'],
      [536, 'LVM2 001'],
    ],
    LUKS: [[0, 'LUKS\xba\xbe\0\x01']],
    squashfs: [[0, 'hsqs']],
    f2fs: [[1024, '\x10\x20\xf5\xf2']],
    zfs: [[132 * K, '\x0c\xb1\xba\0\0\0\0\0']],
    'zfs, big-endian': [[255 * K, '\0\0\0\0\0\xba\xb1\x0c']],
    bcache: [[4120, '\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81']],
    'md 0.90': [[-64 * K, '\xfc\x4e\x2b\xa9']],
    'md 1.0': [[-8 * K, '\xfc\x4e\x2b\xa9']],
    'md 1.1': [[0, '\xfc\x4e\x2b\xa9']],
    'md 1.2': [[4096, '\xfc\x4e\x2b\xa9']],
    'hfs+': [[1024, 'H+']],
    apfs: [[32, 'NXSB']],
    ufs1: [[8192 + 1372, '\x54\x19\x01\0']],
    ufs2: [[65536 + 1372, '\x19\x01\x54\x19']],
    jfs: [[32768, 'JFS1']],
    reiserfs: [[65588, 'ReIsEr2Fs']],
    udf: [[32769, 'BEA01']],
    nilfs2: [
      [1024, '\x02\0\0\0'],
      [1030, '\x34\x34'],
    ],
    'a floppy without a signature': [
      [0, '\xeb\x3c\x90MSDOS5.0\0\x02\x01\x01\0\x02\xe0\0\x40\x0b\xf0'],
    ],
  }
  for (const [name, places] of Object.entries(known)) {
    t.equal(judged(disk(...places)), 'raw, written', name)
  }
})

t.test('what is not known', async t => {
  t.equal(judged(disk()), 'read-only', 'noise')
  t.equal(
    judged(Buffer.from('root:x:0:0:root:/root:/bin/bash\n'.repeat(100)), 'passwd'),
    'read-only',
  )
  t.equal(judged(disk([510, '\x55\xaa'])), 'read-only', 'a boot sector whose entries make no sense')
  t.equal(judged(disk([1080, '\x53\xef'])), 'read-only', 'the magic of ext alone')
})

t.test('what begins with zeros is a fresh disk', async t => {
  t.equal(judged(Buffer.alloc(512)), 'raw, written')
  t.equal(judged(Buffer.alloc(3 * MIB)), 'raw, written')
  const late = Buffer.alloc(3 * MIB)
  late[MIB] = 1
  t.equal(judged(late), 'raw, written', 'a byte past the first MiB')
  late[MIB - 1] = 1
  t.equal(judged(late), 'read-only', 'a byte within it')
})

t.test('a disk that cannot be read to its end', async t => {
  const store = new MemoryStore('disk.img', disk([446, partition(63)]))
  const read = store.read.bind(store)
  store.read = (target, start, length, at) => {
    if (at + length > 64 * K) throw new SystemError('read', EIO)
    return read(target, start, length, at)
  }
  t.doesNotThrow(() => requireWritableFormat(store, undefined))
})

t.test('a format that the user names', async t => {
  for (const bytes of [disk(), gzipSync(disk())]) {
    t.doesNotThrow(() => requireWritableFormat(new MemoryStore('x', bytes), 'raw'))
  }
})

t.test('files that are no disks', async t => {
  const pe = Buffer.alloc(4096)
  pe.write('MZ')
  pe.writeUInt32LE(0x80, 0x3c)
  pe.write('PE\0\0', 0x80)
  const oldTar = disk().subarray(0, 10 * K)
  oldTar.fill(0, 0, 512)
  oldTar.write('disk.vmdk')
  let sum = 8 * 32
  for (let at = 0; at < 512; at++) sum += oldTar[at] as number
  oldTar.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148)
  const refused: Record<string, Buffer> = {
    gzip: gzipSync('x'.repeat(5000) + randomBytes(600).toString('hex')),
    xz: disk([0, '\xfd7zXZ\0']),
    bzip2: disk([0, 'BZh91AY&SY']),
    zstd: disk([0, '\x28\xb5\x2f\xfd']),
    lz4: disk([0, '\x04\x22\x4d\x18']),
    lzma: disk([0, '\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff']),
    '7z': disk([0, '7z\xbc\xaf\x27\x1c']),
    zip: disk([0, 'PK\x03\x04']),
    rar: disk([0, 'Rar!\x1a\x07\x01\0']),
    'a tar archive': disk([257, 'ustar\0']),
    'a tar archive ': oldTar,
    cpio: disk([0, '070701']),
    'ISO 9660': disk([32768, '\x01CD001\x01']),
    'ISO 9660 ': disk([32768, '\x01CD001\x01'], [446, partition(1)]),
    ELF: disk([0, '\x7fELF']),
    script: disk([0, '#!/bin/sh\n']),
    PE: pe,
    dmg: disk([-512, 'koly']),
  }
  for (const [name, bytes] of Object.entries(refused)) {
    t.match(
      judged(bytes),
      new RegExp(`^NOT_AN_IMAGE: this is .*${name.trim()}.*, not a disk`),
      name,
    )
  }
  t.equal(judged(Buffer.from('MZ'.padEnd(4096, 'x'))), 'read-only', 'MZ alone is no program')
})

t.test('boot sectors may look like anything', async t => {
  for (const text of [
    '\x1f\x8b\x08',
    'PK\x03\x04',
    '#!',
    '\x7fELF',
    '\x28\xb5\x2f\xfd',
    '070701',
  ]) {
    t.equal(judged(disk([0, text], [446, partition(63)])), 'raw, written')
  }
  t.equal(judged(disk([257, 'ustar'], [446, partition(63)])), 'raw, written')
  const beyond = judged(disk([0, 'PK\x03\x04'], [446, partition(2 ** 31)]))
  t.match(beyond, /^NOT_AN_IMAGE/, 'a partition that is not within the disk is none')
})

const TOOLS: { tool: string; make: string; name: string; says: RegExp }[] = [
  { tool: 'xz', make: 'xz -kc d > x', name: 'x', says: /xz/ },
  { tool: 'bzip2', make: 'bzip2 -kc d > x', name: 'x', says: /bzip2/ },
  { tool: 'zstd', make: 'zstd -qc d > x', name: 'x', says: /zstd/ },
  { tool: 'lz4', make: 'lz4 -qc d > x', name: 'x', says: /lz4/ },
  { tool: 'zip', make: 'zip -q x.zip d', name: 'x.zip', says: /zip/ },
  ...['v7', 'ustar', 'gnu', 'pax'].map(format => ({
    tool: 'tar',
    make: `tar --format=${format} -cf x d`,
    name: 'x',
    says: /tar archive/,
  })),
  { tool: 'cpio', make: 'echo d | cpio --quiet -o > x', name: 'x', says: /cpio/ },
  { tool: 'cpio', make: 'echo d | cpio --quiet -o -H newc > x', name: 'x', says: /cpio/ },
  { tool: 'genisoimage', make: 'genisoimage -quiet -o x d', name: 'x', says: /ISO 9660/ },
]
for (const { tool, make, name, says } of TOOLS) {
  t.test(make, needs(tool), async t => {
    const folder = tempFolder(t)
    fs.writeFileSync(join(folder, 'd'), disk([446, partition(63)]))
    await run('sh', ['-c', make], { cwd: folder })
    t.match(judged(fs.readFileSync(join(folder, name)), name === 'x' ? 'x' : name), says)
  })
}

const MAKERS: { tool: string; make: string; mib?: number }[] = [
  { tool: 'mkfs.ext4', make: 'mkfs.ext2 -q -F d' },
  { tool: 'mkfs.ext4', make: 'mkfs.ext4 -q -F d' },
  { tool: 'mkfs.xfs', make: 'mkfs.xfs -q d', mib: 512 },
  { tool: 'mkfs.btrfs', make: 'mkfs.btrfs -q d', mib: 256 },
  { tool: 'mkfs.fat', make: 'mkfs.fat -F 12 d' },
  { tool: 'mkfs.fat', make: 'mkfs.fat -F 32 d', mib: 64 },
  { tool: 'mkfs.exfat', make: 'mkfs.exfat d' },
  { tool: 'mkfs.ntfs', make: 'mkfs.ntfs -q -F d' },
  { tool: 'mkfs.f2fs', make: 'mkfs.f2fs -q d', mib: 64 },
  {
    tool: 'mksquashfs',
    make: 'mkdir e; cp /etc/passwd e; rm d; mksquashfs e d -quiet -no-progress',
  },
  { tool: 'mkswap', make: 'mkswap -q d' },
  {
    tool: 'cryptsetup',
    make: 'echo x | cryptsetup -q luksFormat --type luks1 --pbkdf-force-iterations 1000 d -',
  },
  {
    tool: 'cryptsetup',
    make: 'echo x | cryptsetup -q luksFormat --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 d -',
    mib: 64,
  },
  ...['dos', 'gpt', 'sun', 'sgi'].map(label => ({
    tool: 'sfdisk',
    make: `echo ',' | sfdisk -q -X ${label} d`,
    mib: 64,
  })),
]
for (const { tool, make, mib = 32 } of MAKERS) {
  t.test(make, needs(tool), async t => {
    const file = join(tempFolder(t), 'd')
    fs.writeFileSync(file, '')
    fs.truncateSync(file, mib * MIB)
    await run('sh', ['-c', make], { cwd: join(file, '..') })
    const fd = fs.openSync(file, 'r')
    t.teardown(() => fs.closeSync(fd))
    const store = storeOf({ path: file, fd, sizeBytes: fs.fstatSync(fd).size })
    const start = Buffer.alloc(MIB)
    store.read(start, 0, MIB, 0)
    // Not as a fresh disk.
    if (start.equals(Buffer.alloc(MIB))) t.fail('it is empty')
    t.equal(judgedStore(store), 'raw, written')
  })
}
