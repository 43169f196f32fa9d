/**
 * The header of a hosted sparse extent. A stream also has one at its end (VMware, Virtual Disk Format 5.0, "Hosted Sparse
 * Extents", "Stream-Optimized Compressed Sparse Extents").
 */
import assert from 'node:assert'
import { bits64le, bytes, layout, u8, u16le, u32le } from '../../binary.js'
import { type ErrorCode, ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import { tooLarge } from '../disk-size.js'
import {
  MAX_GRAIN_DIRECTORY_BYTES,
  MAX_GRAIN_SECTORS,
  MAX_GRAIN_TABLE_ENTRIES,
  MAX_PACKED_GRAIN_BYTES,
  MAX_VMDK_DESCRIPTOR_BYTES,
} from '../limits.js'
import { countStrays, hasLostTables } from './directory-scan.js'
import { SECTOR_BYTES } from '../../sector.js'
import { ENTRY_BYTES } from './entries.js'

/** A count of sectors with all its 64 bits: 2^64 - 1 has a meaning, and other large ones are damage. */
const sectors = bits64le

export const HEADER = layout({
  magic: u32le,
  version: u32le,
  flags: u32le,
  capacity: sectors,
  grain: sectors,
  descriptorOffset: sectors,
  descriptorSize: sectors,
  tableEntries: u32le,
  redundantDirectory: sectors,
  directory: sectors,
  overhead: sectors,
  unclean: u8,
  newlines: bytes(4),
  compression: u16le,
})
assert.equal(HEADER.size, 79)
/** Where the header's fields begin, in bytes of the file. */
export const SPARSE_FIELD_AT = HEADER.at
type RawHeader = ReturnType<typeof HEADER.decode>

/** The marker of a sector in a stream that is not a grain. Its `size` is 0, unlike a grain's. */
export const MARKER = layout({ sectors, size: u32le, type: u32le })
export const MARKER_TYPE = { endOfStream: 0, table: 1, directory: 2, footer: 3 }

/** "KDMV" */
export const MAGIC = 0x564d444b
/** Bytes that a transfer as text would have changed. */
export const NEWLINES = Buffer.from('\n \r\n', 'latin1')
export const FLAG = {
  newlines: 1 << 0,
  redundant: 1 << 1,
  zeroGrains: 1 << 2,
  compressed: 1 << 16,
  markers: 1 << 17,
}
/** Unknown flags of the upper half change the meaning of the file. Those of the lower half may be ignored. */
const UNKNOWN_FLAGS = 0xfffc0000
export const DEFLATE = 1
/** The header's directory place if only the footer has the real one. */
export const AT_END = 2n ** 64n - 1n
/** The end of a stream: the footer's marker, the footer, and the end marker. */
const STREAM_END_BYTES = 3 * SECTOR_BYTES

/** Plain data; places and sizes are in bytes. */
export interface SparseHeader {
  readonly version: number
  /** 0 if the file is only a container for its descriptor. Then it has no grains or tables. */
  readonly capacityBytes: number
  readonly grainBytes: number
  /** The number of entries of a grain table. */
  readonly tableEntries: number
  readonly directoryAt: number
  /** Undefined if there is none that is kept up to date and can be read. */
  readonly redundantDirectoryAt: number | undefined
  /** Whether one of two directories is damaged that should be kept up to date, and only the other is read. */
  readonly lacksDirectory: boolean
  /** Whether the first one is damaged, so that the redundant one is read. */
  readonly readsRedundant: boolean
  /** Whether grains are read that only the redundant tables name: the first ones may have lost them. */
  readonly readsBoth: boolean
  readonly isCompressed: boolean
  readonly hasZeroGrains: boolean
  readonly isUnclean: boolean
  readonly descriptor: { readonly offset: number; readonly bytes: number } | undefined
  readonly warnings: readonly string[]
}

/** Reads and checks the header, or the footer if that one counts. Throws ImageError, SystemError. */
export function readSparseHeader(store: Store): SparseHeader {
  const fail: Fail = (code, message, hint = RESTORE) => {
    throw new ImageError(code, message, { path: store.path, hint })
  }
  const first = readRaw(store, 0, 'header', fail)
  const descriptor = descriptorOf(first, store.sizeBytes, fail)
  if (first.capacity === 0n) return descriptorOnly(first, descriptor, fail)
  const raw = first.directory === AT_END ? readFooter(store, fail) : first
  const shape = shapeOf(raw, store.path, fail)
  const warnings: string[] = []
  const directories = chooseDirectory(store, raw, shape, warnings, fail)
  const isUnclean = raw.unclean !== 0
  if (isUnclean) warnings.push('it was not closed cleanly: what was written last may be missing')
  const { redundantDirectoryAt } = directories
  const isDouble =
    redundantDirectoryAt !== undefined &&
    redundantDirectoryAt !== directories.directoryAt &&
    !shape.isCompressed
  const lacksTables =
    isDouble && hasLost(store, directories.directoryAt, redundantDirectoryAt, shape)
  if (lacksTables)
    warnings.push('its grain directory has lost tables, which the redundant one names')
  const readsBoth = isDouble && (isUnclean || lacksTables)
  const { version } = raw
  return { version, ...shape, ...directories, readsBoth, isUnclean, descriptor, warnings }
}

/**
 * Returns the descriptor's text, up to the first NUL, and its place in the file; undefined if the extent has none. Throws
 * ImageError, SystemError.
 */
export function readEmbeddedDescriptor(
  store: Store,
  header: SparseHeader,
): { text: Buffer; offset: number } | undefined {
  if (!header.descriptor) return undefined
  const { offset, bytes } = header.descriptor
  const text = Buffer.alloc(bytes)
  const got = store.read(text, 0, bytes, offset)
  if (got < bytes) {
    throw new ImageError('CORRUPT', 'the descriptor is cut off by the end of the file', {
      path: store.path,
      hint: RESTORE,
    })
  }
  const nul = text.indexOf(0)
  return { text: nul < 0 ? text : text.subarray(0, nul), offset }
}

/** Reports whether the header in `sector` has the flag for compressed grains. Reads nothing else of it. */
export const saysCompressed = (sector: Buffer): boolean =>
  (HEADER.decode(sector).flags & FLAG.compressed) !== 0

/** Returns the size of a table of `entries` entries in the file, in bytes. */
export const tableBytes = (entries: number): number =>
  Math.ceil((entries * ENTRY_BYTES) / SECTOR_BYTES) * SECTOR_BYTES

/** Returns the number of entries of the grain directory. */
export const directoryEntries = (
  header: Pick<SparseHeader, 'capacityBytes' | 'grainBytes' | 'tableEntries'>,
): number => Math.ceil(header.capacityBytes / (header.grainBytes * header.tableEntries))

/** Reports whether `bytes` bytes at `at` lie after the header and before the end of the file. */
export const isInFile = (at: number, bytes: number, fileBytes: number): boolean =>
  at >= SECTOR_BYTES && at + bytes <= fileBytes

/** Returns a function that reports whether a grain table can be at a place. */
const isTable =
  (store: Store, { tableEntries }: Pick<SparseHeader, 'tableEntries'>) =>
  (at: number): boolean =>
    isInFile(at, tableBytes(tableEntries), store.sizeBytes)

const hasLost = (store: Store, directoryAt: number, redundantAt: number, shape: Shape): boolean => {
  const places = [directoryAt, redundantAt] as const
  const bytes = tableBytes(shape.tableEntries)
  return hasLostTables(store, places, directoryEntries(shape), bytes, isTable(store, shape))
}

const RESTORE = 'restore it from a copy'
const CONVERT = 'convert it with the program that made it'
type Fail = (code: ErrorCode, message: string, hint?: string) => never

/** Reads the header or footer at `at`, and checks its magic and version. */
function readRaw(store: Store, at: number, name: 'header' | 'footer', fail: Fail): RawHeader {
  const sector = Buffer.alloc(SECTOR_BYTES)
  if (store.read(sector, 0, SECTOR_BYTES, at) < SECTOR_BYTES) {
    fail('NOT_AN_IMAGE', `the ${name} of the sparse extent is cut off`)
  }
  const raw = HEADER.decode(sector)
  if (raw.magic !== MAGIC) {
    const code = name === 'header' ? 'NOT_AN_IMAGE' : 'CORRUPT'
    fail(code, `the ${name} of a sparse extent begins with "KDMV", and this one does not`)
  }
  if (raw.version < 1 || raw.version > 3) {
    fail('UNSUPPORTED', `VMDK has no version ${raw.version} that is known here`, CONVERT)
  }
  const unknown = (raw.flags & UNKNOWN_FLAGS) >>> 0
  if (unknown !== 0) {
    fail('UNSUPPORTED', `the ${name} has unknown flags, 0x${unknown.toString(16)}`, CONVERT)
  }
  if (raw.flags & FLAG.newlines && !raw.newlines.equals(NEWLINES)) {
    const what = 'its newline characters were changed, as a transfer as text does'
    fail('CORRUPT', what, 'transfer it again, as binary')
  }
  return raw
}

/** Reads the footer, between its marker and the end marker. */
function readFooter(store: Store, fail: Fail): RawHeader {
  const end = Buffer.alloc(STREAM_END_BYTES)
  const at = store.sizeBytes - STREAM_END_BYTES
  const isWhole =
    at > 0 &&
    at % SECTOR_BYTES === 0 &&
    store.read(end, 0, STREAM_END_BYTES, at) === STREAM_END_BYTES &&
    isMarker(end, 0, MARKER_TYPE.footer) &&
    isMarker(end, 2 * SECTOR_BYTES, MARKER_TYPE.endOfStream)
  if (!isWhole) {
    const what = 'it is a stream that was cut short: the footer at its end is missing'
    fail('CORRUPT', what, 'transfer or export it again')
  }
  const footer = readRaw(store, at + SECTOR_BYTES, 'footer', fail)
  if (footer.capacity === 0n) fail('CORRUPT', 'the footer gives a disk of no sectors')
  if (footer.directory === AT_END) fail('CORRUPT', 'the footer names no grain directory')
  return footer
}

function isMarker(b: Buffer, at: number, type: number): boolean {
  const marker = MARKER.decode(b, at)
  const isEnd = type === MARKER_TYPE.endOfStream
  return marker.size === 0 && marker.type === type && (!isEnd || marker.sectors === 0n)
}

type Shape = Pick<
  SparseHeader,
  'capacityBytes' | 'grainBytes' | 'tableEntries' | 'isCompressed' | 'hasZeroGrains'
>

/** Returns how the disk is divided into grains and tables. Throws if that is impossible. */
function shapeOf(raw: RawHeader, path: string, fail: Fail): Shape {
  if (raw.capacity > BigInt(Number.MAX_SAFE_INTEGER) / BigInt(SECTOR_BYTES)) {
    throw tooLarge(path, raw.capacity * BigInt(SECTOR_BYTES))
  }
  if (!isPowerOfTwo(raw.grain) || raw.grain > MAX_GRAIN_SECTORS) {
    const what = `the header gives grains of ${raw.grain} sectors`
    fail('CORRUPT', `${what}, not a power of two up to ${MAX_GRAIN_SECTORS}`)
  }
  const { tableEntries } = raw
  if (!isPowerOfTwo(BigInt(tableEntries))) {
    fail('CORRUPT', `the header gives grain tables of ${tableEntries} entries, no power of two`)
  }
  if (tableEntries > MAX_GRAIN_TABLE_ENTRIES) {
    const what = `grain tables of ${tableEntries} entries are not read`
    fail('UNSUPPORTED', `${what}, only up to ${MAX_GRAIN_TABLE_ENTRIES}`, CONVERT)
  }
  const shape = {
    capacityBytes: Number(raw.capacity) * SECTOR_BYTES,
    grainBytes: Number(raw.grain) * SECTOR_BYTES,
    tableEntries,
    isCompressed: isCompressed(raw, fail),
    hasZeroGrains: (raw.flags & FLAG.zeroGrains) !== 0,
  }
  if (shape.isCompressed && shape.grainBytes > MAX_PACKED_GRAIN_BYTES) {
    const what = `compressed grains of ${shape.grainBytes} bytes are not read`
    fail('UNSUPPORTED', `${what}, only up to ${MAX_PACKED_GRAIN_BYTES}`, CONVERT)
  }
  const entries = directoryEntries(shape)
  if (entries * ENTRY_BYTES > MAX_GRAIN_DIRECTORY_BYTES) {
    const what = `a grain directory of ${entries} entries is not read`
    const most = MAX_GRAIN_DIRECTORY_BYTES / ENTRY_BYTES
    fail('UNSUPPORTED', `${what}, only up to ${most}`, 'convert it with larger grains')
  }
  return shape
}

const isPowerOfTwo = (value: bigint): boolean => value > 0n && (value & (value - 1n)) === 0n

function isCompressed({ flags, compression }: RawHeader, fail: Fail): boolean {
  const compressed = (flags & FLAG.compressed) !== 0
  const markers = (flags & FLAG.markers) !== 0
  if (compression > DEFLATE) {
    fail('UNSUPPORTED', `compression method ${compression} is not known`, CONVERT)
  }
  if (compressed !== (compression === DEFLATE) || (markers && !compressed)) {
    fail('CORRUPT', 'its flags and its compression method contradict each other')
  }
  // Programs disagree about the bytes before the data of such a grain.
  if (compressed && !markers) {
    fail(
      'UNSUPPORTED',
      'its compressed grains have no markers, and such grains are not read',
      CONVERT,
    )
  }
  return compressed
}

function descriptorOf(raw: RawHeader, fileBytes: number, fail: Fail): SparseHeader['descriptor'] {
  if (raw.descriptorOffset === 0n || raw.descriptorSize === 0n) return undefined
  const offset = Number(raw.descriptorOffset) * SECTOR_BYTES
  const bytes = Number(raw.descriptorSize) * SECTOR_BYTES
  if (bytes > MAX_VMDK_DESCRIPTOR_BYTES) fail('CORRUPT', `the descriptor has ${bytes} bytes`)
  if (!isInFile(offset, bytes, fileBytes)) {
    fail('CORRUPT', `the descriptor at ${offset} lies beyond the end of the file`)
  }
  return { offset, bytes }
}

/** Returns the header of a file that only contains a descriptor: QEMU (block/vmdk.c) takes capacity 0 for that. */
function descriptorOnly(
  { version, unclean }: RawHeader,
  descriptor: SparseHeader['descriptor'],
  fail: Fail,
): SparseHeader {
  if (!descriptor) fail('CORRUPT', 'the header gives neither a disk nor a descriptor')
  return {
    version,
    capacityBytes: 0,
    grainBytes: 0,
    tableEntries: 0,
    directoryAt: 0,
    redundantDirectoryAt: undefined,
    lacksDirectory: false,
    readsRedundant: false,
    readsBoth: false,
    isCompressed: false,
    hasZeroGrains: false,
    isUnclean: unclean !== 0,
    descriptor,
    warnings: [],
  }
}

/**
 * Chooses the directory to read, and the other one if it can replace damaged entries: that is, if the flag says that it is
 * kept up to date. If the first one is damaged and the other one sound, only the other one is read: the rest of the first
 * one would show old data, or none, where its entries have lost bits.
 */
function chooseDirectory(
  store: Store,
  raw: RawHeader,
  shape: Shape,
  warnings: string[],
  fail: Fail,
): Pick<
  SparseHeader,
  'directoryAt' | 'redundantDirectoryAt' | 'lacksDirectory' | 'readsRedundant'
> {
  const entries = directoryEntries(shape)
  const directoryAt = Number(raw.directory) * SECTOR_BYTES
  const redundantAt = raw.flags & FLAG.redundant ? Number(raw.redundantDirectory) * SECTOR_BYTES : 0
  const isStream = shape.isCompressed && (redundantAt === 0 || raw.redundantDirectory === AT_END)
  const isThere = (at: number) => isInFile(at, tableBytes(entries), store.sizeBytes)
  const strays = (at: number) => countStrays(store, at, entries, isTable(store, shape))
  const damaged = isThere(directoryAt) ? strays(directoryAt) : undefined
  const isSpare = isThere(redundantAt)
  const both = {
    directoryAt,
    redundantDirectoryAt: isSpare ? redundantAt : undefined,
    // A stream has only one directory, whatever its flag says.
    lacksDirectory: !isSpare && (raw.flags & FLAG.redundant) !== 0 && !isStream,
    readsRedundant: false,
  }
  if (damaged === 0) return both
  if (isSpare && strays(redundantAt) === 0) {
    warnings.push('its grain directory is damaged, and the redundant one is read instead')
    const alone = { directoryAt: redundantAt, redundantDirectoryAt: undefined }
    return { ...alone, lacksDirectory: true, readsRedundant: true }
  }
  if (damaged === undefined) {
    fail('CORRUPT', `the grain directory at ${directoryAt} lies beyond the end of the file`)
  }
  warnings.push(`${damaged} of its ${entries} grain tables lie beyond the end of the file`)
  return both
}
