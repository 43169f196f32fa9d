/**
 * The footer and the dynamic header of a VHD image, which QEMU calls vpc (Microsoft, Virtual Hard Disk Image Format
 * Specification 1.0). All numbers are big-endian.
 *
 * A fixed image is the disk with the footer after it. A dynamic image begins with a copy of the footer, has the
 * dynamic header and the block allocation table anywhere, and ends with the footer.
 */
import { bytes, layout, rounded64be, u8, u16be, u32be } from '../../binary.js'
import { type ErrorCode, ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import { isTooLarge, tooLarge } from '../disk-size.js'
import { WRONG_FORMAT } from '../way-out.js'
import { SECTOR_BYTES } from '../../sector.js'

export const COOKIE = 'conectix'
const DYNAMIC_COOKIE = 'cxsparse'

export const FOOTER = layout({
  cookie: bytes(8),
  features: u32be,
  version: u32be,
  dynamicAt: rounded64be,
  timestamp: u32be,
  creator: bytes(4),
  creatorVersion: u32be,
  creatorSystem: u32be,
  originalBytes: rounded64be,
  currentBytes: rounded64be,
  cylinders: u16be,
  heads: u8,
  sectorsPerTrack: u8,
  diskType: u32be,
  checksum: u32be,
  uuid: bytes(16),
})

export const DYNAMIC_HEADER = layout({
  cookie: bytes(8),
  unused: rounded64be,
  tableAt: rounded64be,
  version: u32be,
  tableEntries: u32be,
  blockBytes: u32be,
  checksum: u32be,
})
export const DYNAMIC_HEADER_BYTES = 1024

const TYPE = { fixed: 2, dynamic: 3, differencing: 4 } as const

/**
 * Programs whose images have the size that the footer says. Those of all others have the size of the geometry,
 * which is at most 511 tracks smaller (QEMU, block/vpc.c).
 */
const SIZE_IS_EXACT = new Set(['win ', 'd2v ', 'qem2', 'tap\0', 'CTXS'])
/** The largest geometry, in sectors: such a disk has the size that the footer says, whoever made it. */
const MAX_GEOMETRY_SECTORS = 65535 * 16 * 255

/** Plain data, which can be sent to threads as a message. */
export interface VpcHeader {
  /** The size of the disk, in bytes. */
  readonly sizeBytes: number
  /** Undefined for a fixed image. */
  readonly blocks: VpcBlocks | undefined
  /** Warnings for the user, one line each. */
  readonly warnings: readonly string[]
}

export interface VpcBlocks {
  /** Where the block allocation table is in the file, in bytes: a multiple of 512. */
  readonly tableAt: number
  /** Entries of the table that the disk needs, each of 4 bytes. */
  readonly tableEntries: number
  /** The size of the part of the disk that an entry maps, in bytes: a power of two, 512 at least. */
  readonly blockBytes: number
  /** The bitmap before each block, one bit for each sector, in whole sectors. */
  readonly bitmapBytes: number
  /** Where the dynamic header is, in bytes. */
  readonly headerAt: number
}

const RESTORE = 'restore it from a copy'
type Fail = (code: ErrorCode, message: string, hint: string) => never

/** Whether an image that begins with `head` is a dynamic image. */
export const isVpcHead = (head: Buffer): boolean => isCookie(head)

/** Whether the last sector is a footer with the right checksum, and the name that of a VHD image. Throws SystemError. */
export function hasVpcFooter(store: Store): boolean {
  if (!/\.(vhd|vpc)$/i.test(store.path)) return false
  const footer = readSector(store, lastSectorAt(store))
  return isCookie(footer) && isChecked(footer, FOOTER.at.checksum)
}

/** Reads what describes the disk. Throws ImageError, SystemError. */
export function readVpcHeader(store: Store): VpcHeader {
  const { path } = store
  const fail: Fail = (code, message, hint) => {
    throw new ImageError(code, message, { path, hint })
  }
  const warnings: string[] = []
  const { footer, isCopy } = findFooter(store, fail, warnings)
  const fields = FOOTER.decode(footer)
  if (fields.diskType === TYPE.differencing) {
    fail(
      'UNSUPPORTED',
      'it is a differencing VHD image, which only holds what differs from its parent',
      'merge it with the program that made it, or read its parent',
    )
  }
  const sizeBytes = sizeOf(fields)
  if (isTooLarge(sizeBytes)) throw tooLarge(path, sizeBytes)
  if (fields.diskType === TYPE.fixed && !isCopy) return { sizeBytes, blocks: undefined, warnings }
  if (fields.diskType !== TYPE.dynamic) {
    fail('CORRUPT', `its footer gives the disk the impossible type ${fields.diskType}`, RESTORE)
  }
  return {
    sizeBytes,
    blocks: readBlocks(store, fields.dynamicAt, sizeBytes, fail, warnings),
    warnings,
  }
}

/** Prefers a footer whose checksum is right, and the copy at the start, as QEMU does. */
function findFooter(
  store: Store,
  fail: Fail,
  warnings: string[],
): { footer: Buffer; isCopy: boolean } {
  const copy = readSector(store, 0)
  const last = readSector(store, lastSectorAt(store))
  const footers = [
    { footer: copy, isCopy: true },
    { footer: last, isCopy: false },
  ].filter(({ footer }) => isCookie(footer))
  const sound = footers.find(({ footer }) => isChecked(footer, FOOTER.at.checksum))
  const found = sound ?? footers[0]
  if (!found) return fail('NOT_AN_IMAGE', 'this is no VHD image: it has no footer', WRONG_FORMAT)
  if (!sound) warnings.push('the checksum of its footer is wrong')
  else if (!sound.isCopy && FOOTER.decode(sound.footer).diskType === TYPE.dynamic) {
    warnings.push('the copy of its footer at the start is damaged; the footer at the end is read')
  }
  return found
}

function sizeOf({
  creator,
  currentBytes,
  cylinders,
  heads,
  sectorsPerTrack,
}: ReturnType<typeof FOOTER.decode>): number {
  const sectors = cylinders * heads * sectorsPerTrack
  const isExact = SIZE_IS_EXACT.has(creator.toString('latin1')) || sectors === MAX_GEOMETRY_SECTORS
  return isExact ? currentBytes - (currentBytes % SECTOR_BYTES) : sectors * SECTOR_BYTES
}

function readBlocks(
  store: Store,
  headerAt: number,
  sizeBytes: number,
  fail: Fail,
  warnings: string[],
): VpcBlocks {
  const header = Buffer.alloc(DYNAMIC_HEADER_BYTES)
  if (headerAt + header.length > store.sizeBytes) {
    fail('CORRUPT', `its dynamic header at ${headerAt} lies past the end of the file`, RESTORE)
  }
  store.read(header, 0, header.length, headerAt)
  const fields = DYNAMIC_HEADER.decode(header)
  if (fields.cookie.toString('latin1') !== DYNAMIC_COOKIE) {
    fail('CORRUPT', `there is no dynamic header at ${headerAt}`, RESTORE)
  }
  if (!isChecked(header, DYNAMIC_HEADER.at.checksum)) {
    warnings.push('the checksum of its dynamic header is wrong')
  }
  const { tableAt, blockBytes } = fields
  if (blockBytes < SECTOR_BYTES || !Number.isInteger(Math.log2(blockBytes))) {
    fail('CORRUPT', `a block of ${blockBytes} bytes is impossible`, RESTORE)
  }
  const tableEntries = Math.ceil(sizeBytes / blockBytes)
  if (tableEntries > fields.tableEntries) {
    const what = `its block allocation table has ${fields.tableEntries} entries, and the disk needs ${tableEntries}`
    fail('CORRUPT', what, RESTORE)
  }
  if (tableAt % SECTOR_BYTES !== 0 || tableAt + tableEntries * 4 > store.sizeBytes) {
    const what = `its block allocation table of ${tableEntries} entries cannot be at ${tableAt}`
    fail('CORRUPT', what, RESTORE)
  }
  const bitmapBytes = wholeSectors(Math.ceil(blockBytes / SECTOR_BYTES / 8))
  return { tableAt, tableEntries, blockBytes, bitmapBytes, headerAt }
}

export const wholeSectors = (length: number): number =>
  Math.ceil(length / SECTOR_BYTES) * SECTOR_BYTES

const lastSectorAt = ({ sizeBytes }: Store): number => Math.max(0, sizeBytes - SECTOR_BYTES)

/** Reads a sector. Bytes that the file lacks read as zeros. */
function readSector(store: Store, at: number): Buffer {
  const sector = Buffer.alloc(SECTOR_BYTES)
  store.read(sector, 0, sector.length, at)
  return sector
}

const isCookie = (footer: Buffer): boolean =>
  footer.length >= 8 && footer.toString('latin1', 0, 8) === COOKIE

const isChecked = (structure: Buffer, checksumAt: number): boolean =>
  structure.readUInt32BE(checksumAt) === checksumOf(structure, checksumAt)

/** Returns the one's complement of the sum of all bytes but those of the checksum, 32 bits. */
export function checksumOf(structure: Buffer, checksumAt: number): number {
  let sum = 0
  for (const [at, byte] of structure.entries()) {
    if (at < checksumAt || at >= checksumAt + 4) sum += byte
  }
  return ~sum >>> 0
}
