/**
 * The header of a cow image ("OOOM"). The image has a bitmap of the sectors that are in the file, and the sectors, each at a
 * fixed place (QEMU up to 2.1, block/cow.c; Linux, arch/um/drivers/cow_user.c and ubd_kern.c). All numbers are big-endian.
 *
 * The programs wrote C structures in their compilers' layout, so one magic and two versions stand for five layouts. The place
 * where the sector size reads 512 tells them apart, and the bitmap, which every file contains completely from the beginning.
 */
import { type ErrorCode, ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import { isTooLarge, tooLarge } from '../disk-size.js'
import { WRONG_FORMAT } from '../way-out.js'
import { SECTOR_BYTES } from '../../sector.js'

export const COW_LAYOUTS = ['qemu-x86-64', 'qemu-i386', 'uml-2', 'uml-3', 'uml-3-broken'] as const
/** The program that wrote it. The structures differ, and magic and version do not tell all of them apart. */
export type CowLayout = (typeof COW_LAYOUTS)[number]

/** Plain data, which can be sent to threads as a message. */
export interface CowHeader {
  readonly layout: CowLayout
  /** Undefined if it has no backing file. */
  readonly backingName: string | undefined
  /** The time of the backing file's last write according to the image, in seconds since 1970. */
  readonly backingSeconds: number
  /** The size of the disk, in bytes. */
  readonly sizeBytes: number
  /** The bytes that a bit of the bitmap stands for: 512. */
  readonly sectorBytes: number
  /** The start of the bitmap, in bytes of the file. */
  readonly bitmapOffset: number
  /** The size of the bitmap, in bytes. It may be one less than the disk needs, see `placesOf`. */
  readonly bitmapBytes: number
  readonly dataOffset: number
  /** Warnings for the user, one line each. */
  readonly warnings: readonly string[]
}

const MAGIC = 'OOOM'
/** Version 1 of UML has the byte order of its host. On little-endian hosts the magic is reversed. */
const SWAPPED_MAGIC = 'MOOO'
const VERSION_AT = 4
const NAME_AT_OF_VERSION_3 = 32

/** The places of the fields, in bytes. */
interface Shape {
  readonly version: 2 | 3
  readonly nameAt: number
  readonly nameBytes: number
  readonly secondsAt: number
  readonly sizeAt: number
  readonly sectorBytesAt: number
  /** The size of the whole structure, with padding. */
  readonly bytes: number
  /** The place of the alignment of the bitmap and of the data, and the place of the kind of map. */
  readonly alignment?: { readonly at: number; readonly formatAt: number }
}

export const SHAPES: { readonly [L in CowLayout]: Shape } = {
  'qemu-x86-64': {
    version: 2,
    nameAt: 8,
    nameBytes: 1024,
    secondsAt: 1032,
    sizeAt: 1040,
    sectorBytesAt: 1048,
    bytes: 1056,
  },
  'qemu-i386': {
    version: 2,
    nameAt: 8,
    nameBytes: 1024,
    secondsAt: 1032,
    sizeAt: 1036,
    sectorBytesAt: 1044,
    bytes: 1048,
  },
  'uml-2': {
    version: 2,
    nameAt: 8,
    nameBytes: 4096,
    secondsAt: 4104,
    sizeAt: 4108,
    sectorBytesAt: 4116,
    bytes: 4120,
  },
  'uml-3': {
    version: 3,
    nameAt: NAME_AT_OF_VERSION_3,
    nameBytes: 4096,
    secondsAt: 8,
    sizeAt: 12,
    sectorBytesAt: 20,
    bytes: 4128,
    alignment: { at: 24, formatAt: 28 },
  },
  // 64-bit programs from before 2006: the size is aligned to 8 bytes, which moves all fields after it.
  'uml-3-broken': {
    version: 3,
    nameAt: 36,
    nameBytes: 4096,
    secondsAt: 8,
    sizeAt: 16,
    sectorBytesAt: 24,
    bytes: 4136,
    alignment: { at: 28, formatAt: 32 },
  },
}
const MAX_HEADER_BYTES = Math.max(...Object.values(SHAPES).map(({ bytes }) => bytes))

type Fail = (code: ErrorCode, message: string, hint: string) => never

const RESTORE = 'restore it from a copy'
const READ_BY_OLD_QEMU = 'read it with qemu-nbd of QEMU 2.1 or older'
const MERGE = 'make a raw image of it with uml_moo of the UML utilities'
const KNOWN = 'images of QEMU for x86-64 and i386 and of UML versions 2 and 3 are read'

/** Reads and checks the whole header. Throws ImageError, which names the file; SystemError. */
export function readCowHeader(store: Store): CowHeader {
  const fail: Fail = (code, message, hint) => {
    throw new ImageError(code, message, { path: store.path, hint })
  }
  const head = Buffer.alloc(MAX_HEADER_BYTES)
  const got = store.read(head, 0, head.length, 0)
  const magic = head.toString('latin1', 0, MAGIC.length)
  if (magic !== MAGIC && magic !== SWAPPED_MAGIC) {
    fail('NOT_AN_IMAGE', `this is no cow image: its first bytes are not "${MAGIC}"`, WRONG_FORMAT)
  }
  if (got < VERSION_AT + 4)
    fail('NOT_AN_IMAGE', `its header is cut off after ${got} bytes`, RESTORE)
  const version = head.readUInt32BE(VERSION_AT)
  if (magic === SWAPPED_MAGIC || version === 1) {
    fail('UNSUPPORTED', 'this is a cow image of UML, version 1, which is not read', MERGE)
  }
  if (version !== 2 && version !== 3) {
    fail('UNSUPPORTED', `cow version ${version} is not known`, KNOWN)
  }
  if (version === 3) {
    return decode(layoutOfVersion3(head), head, got, store, fail)
  }
  const candidates = COW_LAYOUTS.filter(layout => {
    const { version, sectorBytesAt, bytes } = SHAPES[layout]
    return version === 2 && got >= bytes && head.readUInt32BE(sectorBytesAt) === SECTOR_BYTES
  })
  // In an image of an i386 program the bits of the bitmap may read 512, too. So also compare with the file's length, which the
  // guest cannot choose.
  const fitting = candidates.find(layout => {
    const size = head.readBigUInt64BE(SHAPES[layout].sizeAt)
    return size <= MAX_SIZE_BYTES && bitmapEnd(layout, Number(size)) <= store.sizeBytes
  })
  const layout = fitting ?? candidates[0]
  if (layout !== undefined) return decode(layout, head, got, store, fail)
  if (got < SHAPES['qemu-i386'].bytes) {
    fail('NOT_AN_IMAGE', `its header is cut off after ${got} bytes`, RESTORE)
  }
  return fail(
    'UNSUPPORTED',
    'it has a header of version 2 in no known layout: none has its sector size, 512, in its place',
    KNOWN,
  )
}

// No path begins with zeros. In the moved layout the kind of map is there, which is 0.
const layoutOfVersion3 = (head: Buffer): CowLayout =>
  head.readUInt32BE(NAME_AT_OF_VERSION_3) === 0 ? 'uml-3-broken' : 'uml-3'

/** Returns where the backing file's name begins, in a header that may be damaged or have version 1. */
export function cowNameAt(head: Buffer): number {
  const isVersion3 = head.length >= NAME_AT_OF_VERSION_3 + 4 && head.readUInt32BE(VERSION_AT) === 3
  return SHAPES[isVersion3 ? layoutOfVersion3(head) : 'qemu-x86-64'].nameAt
}

/** The largest disk: its data, and the bitmap before them, still lie below 2^53. */
const MAX_SIZE_BYTES = 2 ** 52
const MAX_ALIGNMENT_BYTES = 2 ** 30

function decode(
  layout: CowLayout,
  head: Buffer,
  got: number,
  { path, sizeBytes: fileBytes }: Pick<Store, 'path' | 'sizeBytes'>,
  fail: Fail,
): CowHeader {
  const shape = SHAPES[layout]
  if (got < shape.bytes) fail('NOT_AN_IMAGE', `its header is cut off after ${got} bytes`, RESTORE)
  const sectorBytes = head.readUInt32BE(shape.sectorBytesAt)
  if (sectorBytes !== SECTOR_BYTES) {
    fail('UNSUPPORTED', `its sectors have ${sectorBytes} bytes`, 'sectors of 512 bytes are read')
  }
  const size = head.readBigUInt64BE(shape.sizeAt)
  if (isTooLarge(size)) throw tooLarge(path, size, { hint: READ_BY_OLD_QEMU })
  if (size > MAX_SIZE_BYTES) {
    fail('CORRUPT', `the header gives a disk of ${size} bytes, above ${MAX_SIZE_BYTES}`, RESTORE)
  }
  const alignment = alignmentOf(shape, head, fail)
  const sizeBytes = diskBytes(layout, Number(size))
  const places = placesOf(layout, sizeBytes, alignment)
  const end = places.bitmapOffset + places.bitmapBytes
  if (end > fileBytes) {
    fail(
      'CORRUPT',
      `its bitmap ends at ${end}, beyond the end of the file (${fileBytes} bytes)`,
      RESTORE,
    )
  }
  return {
    layout,
    backingName: backingName(shape, head, fail),
    backingSeconds: head.readUInt32BE(shape.secondsAt),
    sizeBytes,
    sectorBytes,
    ...places,
    warnings: warningsOf(sizeBytes, places.bitmapBytes),
  }
}

/** Returns the size of the disk. QEMU ignores bytes after the last whole sector. */
const diskBytes = (layout: CowLayout, sizeBytes: number): number =>
  isOfQemu(layout) ? sizeBytes - (sizeBytes % SECTOR_BYTES) : sizeBytes

const isOfQemu = (layout: CowLayout): boolean => layout.startsWith('qemu')

function alignmentOf({ alignment }: Shape, head: Buffer, fail: Fail): number {
  if (alignment === undefined) return SECTOR_BYTES
  const format = head.readUInt32BE(alignment.formatAt)
  if (format !== 0) {
    fail('UNSUPPORTED', `its map of sectors is of kind ${format}`, 'bitmaps, kind 0, are read')
  }
  const bytes = head.readUInt32BE(alignment.at)
  if (bytes < SECTOR_BYTES || bytes > MAX_ALIGNMENT_BYTES || (bytes & (bytes - 1)) !== 0) {
    fail(
      'CORRUPT',
      `the header aligns data to ${bytes} bytes, not a power of two from ${SECTOR_BYTES} to ${MAX_ALIGNMENT_BYTES}`,
      RESTORE,
    )
  }
  return bytes
}

type Places = Pick<CowHeader, 'bitmapOffset' | 'bitmapBytes' | 'dataOffset'>

/**
 * Returns where the bitmap and the data of a disk of `sizeBytes` bytes are.
 *
 * Version 2 of UML rounds the size of the bitmap down. If the number of sectors is not a multiple of 8, it does not count or
 * read the bits of the last ones. But it wrote these bits into the next byte, so they are read there. If data begin in that
 * byte, the last sectors have no bit at all.
 * @param alignment the alignment of version 3, in bytes
 */
export function placesOf(layout: CowLayout, sizeBytes: number, alignment: number): Places {
  const { bytes, version } = SHAPES[layout]
  const sectors = Math.ceil(sizeBytes / SECTOR_BYTES)
  const needed = Math.ceil(sectors / 8)
  const counted = layout === 'uml-2' ? Math.floor(sectors / 8) : needed
  const bitmapOffset = version === 3 ? roundUp(bytes, alignment) : bytes
  const dataOffset = roundUp(bitmapOffset + counted, alignment)
  const bitmapBytes = bitmapOffset + needed <= dataOffset ? needed : counted
  return { bitmapOffset, bitmapBytes, dataOffset }
}

function bitmapEnd(layout: CowLayout, sizeBytes: number): number {
  const { bitmapOffset, bitmapBytes } = placesOf(layout, diskBytes(layout, sizeBytes), SECTOR_BYTES)
  return bitmapOffset + bitmapBytes
}

const roundUp = (bytes: number, unit: number): number => Math.ceil(bytes / unit) * unit

function warningsOf(sizeBytes: number, bitmapBytes: number): string[] {
  const sectors = Math.ceil(sizeBytes / SECTOR_BYTES)
  const left = sectors - bitmapBytes * 8
  if (left <= 0) return []
  return [
    `its last ${left} sectors have no place in its bitmap, as UML made them: they cannot be written`,
  ]
}

/** Returns the backing file's name, up to its NUL. */
function backingName({ nameAt, nameBytes }: Shape, head: Buffer, fail: Fail): string | undefined {
  const field = head.subarray(nameAt, nameAt + nameBytes)
  const nul = field.indexOf(0)
  if (nul < 0)
    fail('CORRUPT', 'the name of its backing file does not end within its field', RESTORE)
  return nul === 0 ? undefined : field.toString('utf8', 0, nul)
}
