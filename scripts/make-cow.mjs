/**
 * Makes a cow image of each layout, and their backing file base.raw: node scripts/make-cow.mjs FOLDER
 *
 * No program in use reads or writes the format any more. The images follow the structures and the arithmetic of the
 * sources below, field by field. The places are written down, not computed, so that one can compare them with the
 * sources:
 *
 *  qemu-x86-64.cow, qemu-i386.cow: QEMU 0.5 to 2.1, block/cow.c, `struct cow_header_v2` and `cow_create`. The
 *    structure is not packed: `uint64_t size` begins on a border of 8 bytes for x86-64, of 4 bytes for i386.
 *  uml-2.cow: Linux, arch/um/drivers/cow_user.c, `struct cow_header_v2`, and `cow_sizes` below version 3.
 *  uml-3.cow: the same, `struct cow_header_v3`, as arch/um/drivers/ubd_kern.c makes it: aligned to pages.
 *  uml-3-broken.cow: the same, `struct cow_header_v3_broken`: version 3 of 64 bits until December 2005.
 *
 * The same bytes come out every time.
 */
import assert from 'node:assert/strict'
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'

const SECTOR_BYTES = 512
/** The bitmap takes 257 bytes; the last byte has 3 bits, and version 2 of UML counts only 256 bytes. */
const SECTORS = 2051
const SIZE_BYTES = SECTORS * SECTOR_BYTES
const SECONDS = Date.parse('2004-05-06T07:08:09Z') / 1000
/** Runs of sectors that the images contain: [first, how many]. */
const WRITTEN = [
  [0, 1],
  [3, 2],
  [7, 10],
  [1023, 2],
  [1200, 300],
  [2050, 1],
]

/** Where the bitmap and the data begin; `fields` are [at, bytes, value]. */
const IMAGES = {
  'qemu-x86-64': {
    name: [8, 1024],
    fields: [
      [4, 4, 2],
      [1032, 4, SECONDS],
      [1040, 8, SIZE_BYTES],
      [1048, 4, SECTOR_BYTES],
    ],
    bitmap: 1056,
    data: 1536,
    backing: 'base.raw',
    isWhole: false,
  },
  'qemu-i386': {
    name: [8, 1024],
    fields: [
      [4, 4, 2],
      [1032, 4, SECONDS],
      [1036, 8, SIZE_BYTES],
      [1044, 4, SECTOR_BYTES],
    ],
    bitmap: 1048,
    data: 1536,
    backing: 'base.raw',
    isWhole: false,
  },
  'uml-2': {
    name: [8, 4096],
    fields: [
      [4, 4, 2],
      [4104, 4, SECONDS],
      [4108, 8, SIZE_BYTES],
      [4116, 4, SECTOR_BYTES],
    ],
    bitmap: 4120,
    data: 4608,
    backing: '/home/sam/uml/base.raw',
    isWhole: true,
  },
  'uml-3': {
    name: [32, 4096],
    fields: [
      [4, 4, 3],
      [8, 4, SECONDS],
      [12, 8, SIZE_BYTES],
      [20, 4, SECTOR_BYTES],
      [24, 4, 4096],
      [28, 4, 0],
    ],
    bitmap: 8192,
    data: 12_288,
    backing: '/home/sam/uml/base.raw',
    isWhole: true,
  },
  'uml-3-broken': {
    name: [36, 4096],
    fields: [
      [4, 4, 3],
      [8, 4, SECONDS],
      [16, 8, SIZE_BYTES],
      [24, 4, SECTOR_BYTES],
      [28, 4, 4096],
      [32, 4, 0],
    ],
    bitmap: 8192,
    data: 12_288,
    backing: '/home/sam/uml/base.raw',
    isWhole: true,
  },
}

const [folder, ...more] = process.argv.slice(2)
if (folder === undefined || more.length > 0) {
  process.stderr.write('usage: node scripts/make-cow.mjs FOLDER\n')
  process.exit(2)
}
mkdirSync(folder, { recursive: true })
writeFileSync(join(folder, 'base.raw'), baseDisk())
for (const [layout, image] of Object.entries(IMAGES)) {
  writeFileSync(join(folder, `${layout}.cow`), imageOf(image))
}

/** @param isWhole whether the file is as long as all sectors from the first on, as UML makes it */
function imageOf({ name: [nameAt, nameBytes], fields, bitmap, data, backing, isWhole }) {
  const [first, count] = WRITTEN.at(-1)
  const end = isWhole ? SIZE_BYTES : (first + count) * SECTOR_BYTES
  const bytes = Buffer.alloc(data + end)
  bytes.write('OOOM', 'latin1')
  assert(backing.length < nameBytes)
  bytes.write(backing, nameAt, 'latin1')
  for (const [at, size, value] of fields) {
    if (size === 8) bytes.writeBigUInt64BE(BigInt(value), at)
    else bytes.writeUInt32BE(value, at)
  }
  for (const [first, count] of WRITTEN) {
    for (let sector = first; sector < first + count; sector++) {
      bytes[bitmap + Math.floor(sector / 8)] |= 2 ** (sector % 8)
      line('written', sector).copy(bytes, data + sector * SECTOR_BYTES)
    }
  }
  return bytes
}

function baseDisk() {
  const sectors = Array.from({ length: SECTORS }, (_, i) => line('base', i))
  return Buffer.concat(sectors)
}

/** Returns a sector whose text names it. */
function line(what, sector) {
  return Buffer.alloc(SECTOR_BYTES, `${what} ${String(sector).padStart(6, '0')}\n`)
}
