/** The header of a qcow image, version 1 (QEMU block/qcow.c; libyal libqcow's description of the format). */
import { layout, rounded64be, u8, u16be, u32be, u64be } from '../../binary.js'
import { type ErrorCode, ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import { backingNameAt } from '../backing-file.js'
import { isTooLarge, tooLarge } from '../disk-size.js'
import type { ReadPart } from '../format.js'
import { WRONG_FORMAT } from '../way-out.js'
import { MAX_BACKING_NAME_BYTES } from '../limits.js'
import { MAGIC } from '../qcow2/header.js'

export const HEADER = layout({
  magic: u32be,
  version: u32be,
  backingNameOffset: u64be,
  backingNameBytes: u32be,
  mtime: u32be,
  sizeBytes: rounded64be,
  clusterBits: u8,
  l2Bits: u8,
  padding: u16be,
  cryptMethod: u32be,
  l1Offset: u64be,
})

export interface QcowHeader {
  /** Undefined if it has no backing file. The format has no field for the backing file's format. */
  readonly backingName: string | undefined
  /** The place and length of the name in the file, in bytes; 0 if there is none. */
  readonly backingNameOffset: number
  readonly backingNameBytes: number
  /** The size of the disk, in bytes. */
  readonly sizeBytes: number
  readonly clusterBits: number
  /** The number of entries of an L2 table is 2^l2Bits. */
  readonly l2Bits: number
  /** 0 none, 1 AES. */
  readonly cryptMethod: number
  readonly l1Offset: number
  readonly l1Entries: number
}

/** The size of an entry of an L1 or L2 table, in bytes. */
export const ENTRY_BYTES = 8

/** Cluster sizes, as powers of two: 512 bytes to 64 KiB. */
const CLUSTER_BITS = { min: 9, max: 16 }
/** Entries of an L2 table, as powers of two: tables have 512 bytes to 64 KiB. */
const L2_BITS = { min: 6, max: 13 }
/** The most entries of an L1 table. */
export const MAX_L1_ENTRIES = Math.floor((2 ** 31 - 1) / ENTRY_BYTES)
/** The smallest disk. */
const MIN_SIZE_BYTES = 2
const MAX_CRYPT_METHOD = 1

type Shape = Pick<QcowHeader, 'clusterBits' | 'l2Bits'>

export const clusterBytes = ({ clusterBits }: Pick<Shape, 'clusterBits'>): number =>
  2 ** clusterBits

/** Returns the size of an L2 table, in bytes. */
export const tableBytes = ({ l2Bits }: Pick<Shape, 'l2Bits'>): number => 2 ** l2Bits * ENTRY_BYTES

/** Returns how many bytes of the disk one L2 table maps. */
export const coverageBytes = ({ clusterBits, l2Bits }: Shape): number => 2 ** (clusterBits + l2Bits)

export const isEncrypted = ({ cryptMethod }: Pick<QcowHeader, 'cryptMethod'>): boolean =>
  cryptMethod !== 0

/** Returns the name of the backing file, by a header that may be damaged; see Format.filesNeeded. */
export function filesNeededByQcow(head: Buffer, read: ReadPart): Buffer[] {
  const { at } = HEADER
  const isQcow =
    head.length >= at.mtime &&
    head.readUInt32BE(at.magic) === MAGIC &&
    head.readUInt32BE(at.version) === 1
  if (!isQcow) return []
  const offset = head.readBigUInt64BE(at.backingNameOffset)
  return [backingNameAt(read, offset, head.readUInt32BE(at.backingNameBytes))]
}

/** Reads and checks the whole header. Throws ImageError, which names the file. */
export function readQcowHeader(store: Store): QcowHeader {
  const fail = (code: ErrorCode, message: string, hint: string): never => {
    throw new ImageError(code, message, { path: store.path, hint })
  }
  const first = Buffer.alloc(HEADER.size)
  const got = store.read(first, 0, first.length, 0)
  if (got < HEADER.size) {
    fail('NOT_AN_IMAGE', `the qcow header is cut off after ${got} bytes`, RESTORE)
  }
  if (first.readUInt32BE(0) !== MAGIC) {
    fail('NOT_AN_IMAGE', 'this is no qcow image: its first bytes are not "QFI\\xfb"', WRONG_FORMAT)
  }
  const version = first.readUInt32BE(4)
  if (version !== 1) {
    const isQcow2 = version === 2 || version === 3
    const what = isQcow2
      ? `this is qcow2, version ${version}, and not qcow`
      : `qcow has no version ${version}`
    fail('UNSUPPORTED', what, isQcow2 ? WRONG_FORMAT : RESTORE)
  }
  const h = decode(first, store)
  if (isTooLarge(h.sizeBytes)) throw tooLarge(store.path, h.sizeBytes)
  if (h.sizeBytes < MIN_SIZE_BYTES) {
    fail('CORRUPT', `the disk has ${h.sizeBytes} bytes, below ${MIN_SIZE_BYTES}`, RESTORE)
  }
  const requirePower = (what: string, bits: number, { min, max }: typeof L2_BITS) => {
    if (bits >= min && bits <= max) return
    fail('CORRUPT', `the header gives ${what} of 2^${bits}, not 2^${min} to 2^${max}`, RESTORE)
  }
  requirePower('bytes of a cluster', h.clusterBits, CLUSTER_BITS)
  requirePower('entries of an L2 table', h.l2Bits, L2_BITS)
  if (h.cryptMethod > MAX_CRYPT_METHOD) {
    fail('CORRUPT', `encryption method ${h.cryptMethod} is not known`, RESTORE)
  }
  const l1Entries = Math.ceil(h.sizeBytes / coverageBytes(h))
  if (l1Entries > MAX_L1_ENTRIES) {
    const what = `a disk of ${h.sizeBytes} bytes needs ${l1Entries} L1 entries`
    fail('CORRUPT', `${what}, above ${MAX_L1_ENTRIES}`, RESTORE)
  }
  checkL1(h.l1Offset, l1Entries, store.sizeBytes, fail)
  const { sizeBytes, clusterBits, l2Bits, cryptMethod, l1Offset } = h
  const backing = readBackingName(h.backingNameOffset, h.backingNameBytes, store, fail)
  return { ...backing, sizeBytes, clusterBits, l2Bits, cryptMethod, l1Offset, l1Entries }
}

/** Returns the header of a new image. The backing file's name, if there is one, is not a part of it. */
export const encodeQcowHeader = (header: Omit<QcowHeader, 'backingName' | 'l1Entries'>): Buffer =>
  HEADER.encode({
    ...header,
    magic: MAGIC,
    version: 1,
    mtime: 0,
    padding: 0,
  })

const RESTORE = 'restore it from a copy'
type Fail = (code: ErrorCode, message: string, hint: string) => never

function decode(first: Buffer, { path }: Store): ReturnType<typeof HEADER.decode> {
  try {
    return HEADER.decode(first)
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    const message = `the header is damaged: ${error.message}`
    throw new ImageError(error.code, message, { path, hint: RESTORE })
  }
}

/** Checks the L1 table's place. It is read piece by piece, so the size of the file is limit enough. */
function checkL1(at: number, entries: number, fileBytes: number, fail: Fail): void {
  if (at < HEADER.size) fail('CORRUPT', `the L1 table at ${at} lies over the header`, RESTORE)
  if (at % ENTRY_BYTES !== 0) {
    fail('CORRUPT', `the L1 table at ${at} is not aligned to its entries`, RESTORE)
  }
  if (at + entries * ENTRY_BYTES > fileBytes) {
    const what = `the L1 table of ${entries} entries at ${at}`
    fail('CORRUPT', `${what} lies beyond the end of the file (${fileBytes} bytes)`, RESTORE)
  }
}

function readBackingName(
  at: number,
  bytes: number,
  store: Store,
  fail: Fail,
): Pick<QcowHeader, 'backingName' | 'backingNameOffset' | 'backingNameBytes'> {
  if (at === 0 || bytes === 0) {
    return { backingName: undefined, backingNameOffset: 0, backingNameBytes: 0 }
  }
  if (bytes > MAX_BACKING_NAME_BYTES) {
    const what = `the backing file's name has ${bytes} bytes, above ${MAX_BACKING_NAME_BYTES}`
    fail('CORRUPT', what, RESTORE)
  }
  const name = Buffer.alloc(bytes)
  if (store.read(name, 0, bytes, at) < bytes) {
    const what = `the backing file's name at ${at} lies beyond the end of the file`
    fail('CORRUPT', what, RESTORE)
  }
  if (name.includes(0)) fail('CORRUPT', "the backing file's name has a NUL byte", RESTORE)
  return { backingName: name.toString('utf8'), backingNameOffset: at, backingNameBytes: bytes }
}
