/** The qcow2 header (QEMU docs/interop/qcow2.rst, "Header"). */
import { type ErrorCode, ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import { isTooLarge, SHRINK, tooLarge } from '../disk-size.js'
import { WRONG_FORMAT } from '../way-out.js'
import { MAX_BACKING_NAME_BYTES, MAX_CLUSTER_BITS, MIN_CLUSTER_BITS } from '../limits.js'
import {
  type BitmapsExtension,
  type EncryptionExtension,
  READ_THROUGH,
  readExtensions,
} from './header-extensions.js'
import { COMPRESSION_TYPE_AT, FIELD_AT, V2_HEADER, V3_FIELDS } from './header-layout.js'
import { type Defect, usablePlaces } from './table-places.js'

/** "QFI" and 0xfb; qcow version 1 has the same. */
export const MAGIC = 0x514649fb

export const INCOMPATIBLE = {
  dirty: 1n << 0n,
  corrupt: 1n << 1n,
  externalData: 1n << 2n,
  compression: 1n << 3n,
  extendedL2: 1n << 4n,
}
const KNOWN_INCOMPATIBLE = Object.values(INCOMPATIBLE).reduce((all, bit) => all | bit, 0n)
export const COMPATIBLE = { lazyRefcounts: 1n << 0n }
export const AUTOCLEAR = { bitmaps: 1n << 0n, rawExternalData: 1n << 1n }

export interface Qcow2Header {
  readonly version: 2 | 3
  readonly clusterBits: number
  /** The disk's size. */
  readonly sizeBytes: number
  readonly cryptMethod: number
  readonly l1Entries: number
  readonly l1Offset: number
  readonly refcountTableOffset: number
  readonly refcountTableClusters: number
  /** The width of a reference count is 2^refcountOrder bits. */
  readonly refcountOrder: number
  readonly snapshotCount: number
  readonly snapshotsOffset: number
  readonly incompatible: bigint
  readonly compatible: bigint
  readonly autoclear: bigint
  readonly headerBytes: number
  readonly compression: 'zlib' | 'zstd'
  readonly backingName: string | undefined
  readonly backingFormat: string | undefined
  readonly dataFileName: string | undefined
  readonly bitmaps: BitmapsExtension | undefined
  readonly encryption: EncryptionExtension | undefined
  /** Damaged parts without which the disk can still be read. */
  readonly defects: readonly Defect[]
}

/** Methods of encryption; qcow uses the same numbers. */
export const CRYPT = { none: 0, aes: 1, luks: 2 } as const

export const clusterBytes = (header: Pick<Qcow2Header, 'clusterBits'>): number =>
  2 ** header.clusterBits

export const isExtendedL2 = (header: Pick<Qcow2Header, 'incompatible'>): boolean =>
  (header.incompatible & INCOMPATIBLE.extendedL2) !== 0n

/** Returns the size of an L2 entry, in bytes. */
export const l2EntryBytes = (header: Pick<Qcow2Header, 'incompatible'>): number =>
  isExtendedL2(header) ? 16 : 8

/** Returns how many bytes of the disk one L2 table maps. */
export const l2CoverageBytes = (
  header: Pick<Qcow2Header, 'clusterBits' | 'incompatible'>,
): number => (clusterBytes(header) / l2EntryBytes(header)) * clusterBytes(header)

/** Reads and checks the whole header. Throws ImageError, which names the file. */
export function readHeader(store: Store): Qcow2Header {
  const fail = (code: ErrorCode, message: string, hint?: string): never => {
    throw new ImageError(code, message, { path: store.path, ...(hint && { hint }) })
  }
  const first = Buffer.alloc(512)
  const got = store.read(first, 0, first.length, 0)
  if (
    got < V2_HEADER.size ||
    (first.readUInt32BE(FIELD_AT.version) >= 3 && got < COMPRESSION_TYPE_AT)
  ) {
    fail('NOT_AN_IMAGE', `the qcow2 header is cut off after ${got} bytes`, RESTORE)
  }
  if (first.readUInt32BE(FIELD_AT.magic) !== MAGIC) {
    fail('NOT_AN_IMAGE', 'this is no qcow2 image: its first bytes are not "QFI\\xfb"', WRONG_FORMAT)
  }
  const version = first.readUInt32BE(FIELD_AT.version)
  if (version !== 2 && version !== 3) {
    if (version === 1) fail('UNSUPPORTED', 'this is qcow, version 1, and not qcow2', WRONG_FORMAT)
    const hint = 'versions 2 and 3 are read, and no others are known; restore it from a copy'
    fail('UNSUPPORTED', `qcow2 has no version ${version}`, hint)
  }
  const h = decode(() => V2_HEADER.decode(first), store)
  const v3 = version === 3 ? V3_FIELDS.decode(first, V2_HEADER.size) : V2_DEFAULTS

  if (h.clusterBits < MIN_CLUSTER_BITS || h.clusterBits > MAX_CLUSTER_BITS) {
    fail(
      'CORRUPT',
      `the header gives clusters of 2^${h.clusterBits} bytes, not 2^${MIN_CLUSTER_BITS} to 2^${MAX_CLUSTER_BITS}`,
      RESTORE,
    )
  }
  if (isTooLarge(h.sizeBytes)) throw tooLarge(store.path, h.sizeBytes, { hint: SHRINK })
  const cluster = 2 ** h.clusterBits
  if (version === 3 && (v3.headerBytes < 104 || v3.headerBytes > cluster || v3.headerBytes % 8)) {
    fail('CORRUPT', `the header says that it has ${v3.headerBytes} bytes`, RESTORE)
  }
  const head = Buffer.alloc(Math.min(cluster, store.sizeBytes))
  const headBytes = store.read(head, 0, head.length, 0)
  if (headBytes < v3.headerBytes) fail('CORRUPT', 'the header is cut off', RESTORE)

  const unknownBits = v3.incompatible & ~KNOWN_INCOMPATIBLE
  if (h.backingNameOffset > cluster) {
    fail(
      'CORRUPT',
      `the backing file name at ${h.backingNameOffset} is outside the header cluster`,
      RESTORE,
    )
  }
  const extensionsEnd = h.backingNameOffset > 0 ? h.backingNameOffset : cluster
  const extensions = readExtensions(head.subarray(0, extensionsEnd), v3.headerBytes, unknownBits)
  if (unknownBits !== 0n) {
    const names = bitsOf(unknownBits).map(bit => extensions.featureNames.get(bit) ?? `bit ${bit}`)
    fail(
      'UNSUPPORTED',
      `it uses incompatible features that are not known here: ${names.join(', ')}`,
      'open it with the program that made it, or convert it there',
    )
  }

  const { broken } = extensions
  const isExternal = (v3.incompatible & INCOMPATIBLE.externalData) !== 0n
  if (broken) {
    const { type, at } = broken
    const message = `the header extension at ${at} is longer than the header cluster`
    // An extension that reading needs may be there, or after it.
    const isNeeded =
      (h.backingNameOffset > 0 && extensions.backingFormat === undefined) ||
      (isExternal && extensions.dataFileName === undefined) ||
      (h.cryptMethod === CRYPT.luks && extensions.encryption === undefined) ||
      READ_THROUGH.has(type)
    if (isNeeded) fail('CORRUPT', message, RESTORE)
    extensions.defects.push({ part: 'extensions', message, at })
  }
  const compressionType =
    v3.headerBytes > COMPRESSION_TYPE_AT ? head.readUInt8(COMPRESSION_TYPE_AT) : 0
  if (compressionType > 1) {
    fail(
      'UNSUPPORTED',
      `compression type ${compressionType} is not known`,
      'zlib and zstd are read',
    )
  }
  if ((compressionType !== 0) !== ((v3.incompatible & INCOMPATIBLE.compression) !== 0n)) {
    fail(
      'CORRUPT',
      'the compression type and its incompatible feature bit contradict each other',
      RESTORE,
    )
  }
  if (h.cryptMethod > 2) fail('CORRUPT', `encryption method ${h.cryptMethod} is not known`, RESTORE)
  const isExtended = (v3.incompatible & INCOMPATIBLE.extendedL2) !== 0n
  if (isExtended && h.clusterBits < 14) {
    fail('CORRUPT', 'extended L2 entries need clusters of 16 KiB at least', RESTORE)
  }
  if (isExternal && extensions.dataFileName === undefined) {
    fail('CORRUPT', 'its data are in another file, which the header does not name', RESTORE)
  }

  const l1Needed = Math.ceil(h.sizeBytes / ((cluster / (isExtended ? 16 : 8)) * cluster))
  const header: Qcow2Header = {
    ...h,
    ...v3,
    version: version as 2 | 3,
    compression: compressionType === 1 ? 'zstd' : 'zlib',
    backingName: backingName(h.backingNameOffset, h.backingNameBytes, head, cluster, fail),
    backingFormat: extensions.backingFormat,
    dataFileName: extensions.dataFileName,
    bitmaps: extensions.bitmaps,
    encryption: extensions.encryption,
    defects: [],
  }
  const { places, defects } = usablePlaces(
    header,
    { clusterBytes: cluster, fileBytes: store.sizeBytes, l1Needed },
    (code, message) => fail(code, message, RESTORE),
  )
  return { ...places, defects: [...extensions.defects, ...defects] }
}

/** Returns the header of an image without names, snapshots or extensions. */
export function encodeHeader(
  header: Pick<
    Qcow2Header,
    | 'version'
    | 'clusterBits'
    | 'sizeBytes'
    | 'l1Entries'
    | 'l1Offset'
    | 'refcountTableOffset'
    | 'refcountTableClusters'
    | 'incompatible'
    | 'refcountOrder'
  >,
): Buffer {
  const first = V2_HEADER.encode({
    ...header,
    magic: MAGIC,
    backingNameOffset: 0,
    backingNameBytes: 0,
    cryptMethod: 0,
    snapshotCount: 0,
    snapshotsOffset: 0,
  })
  if (header.version === 2) return first
  const v3 = { ...header, compatible: 0n, autoclear: 0n, headerBytes: COMPRESSION_TYPE_AT }
  return Buffer.concat([first, V3_FIELDS.encode(v3)])
}

const RESTORE = 'restore it from a copy, or try vimgfs check --repair all on a copy'
const V2_DEFAULTS = {
  incompatible: 0n,
  compatible: 0n,
  autoclear: 0n,
  refcountOrder: 4,
  headerBytes: V2_HEADER.size,
}
type Fail = (code: ErrorCode, message: string, hint?: string) => never

/** Runs `read`, and adds the file's name to the errors that it throws. */
function decode<T>(read: () => T, store: Store): T {
  try {
    return read()
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    throw new ImageError(error.code, `the header is damaged: ${error.message}`, {
      path: store.path,
      hint: RESTORE,
    })
  }
}

function backingName(
  at: number,
  length: number,
  head: Buffer,
  cluster: number,
  fail: Fail,
): string | undefined {
  if (at === 0 || length === 0) return undefined
  if (length > MAX_BACKING_NAME_BYTES || at + length > cluster) {
    fail('CORRUPT', `the backing file name has ${length} bytes at ${at}`, RESTORE)
  }
  if (at + length > head.length) fail('CORRUPT', 'the backing file name is cut off', RESTORE)
  const name = head.subarray(at, at + length)
  if (name.includes(0)) fail('CORRUPT', 'the backing file name holds a NUL', RESTORE)
  return name.toString('utf8')
}

function bitsOf(bits: bigint): number[] {
  return Array.from({ length: 64 }, (_, bit) => bit).filter(bit => (bits >> BigInt(bit)) & 1n)
}
