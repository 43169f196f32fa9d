/**
 * seSparse extents: ESX 6.5 and later keep snapshots in them. VMware has not published the format. The facts are from QEMU's
 * block/vmdk.c; xen-orchestra's VhdEsxiSeSparse.mjs agrees. Little-endian, 64 bits each; all places and sizes are in sectors.
 *
 * The header gives a region for each kind of structure, so an entry is an index into a region.
 */
import { bits64le, bytes, type Field, layout } from '../../binary.js'
import { type ErrorCode, ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import { isTooLarge, tooLarge } from '../disk-size.js'
import { MAX_GRAIN_DIRECTORY_ENTRIES } from '../limits.js'
import {
  DAMAGED,
  GrainTables,
  overlap,
  PARENT,
  type Region,
  TABLE_ENTRIES,
  ZERO,
} from './grain-tables.js'
import type { ExtentParts } from './parts.js'
import { SECTOR_BYTES } from '../../sector.js'
import {
  GRAIN,
  grainIndex,
  grainKind,
  hexEntry,
  SESPARSE_ENTRY_BYTES,
  TABLE_IS_HERE,
} from './sesparse-entries.js'

const CONSTANT_MAGIC = 0xcafebaben
const VOLATILE_MAGIC = 0xcafecafen
/** Version 2.1, the only known one. */
const VERSION = 0x2_0000_0001n
const GRAIN_SECTORS = 8
const TABLE_SECTORS = 64
const GRAIN_BYTES = GRAIN_SECTORS * SECTOR_BYTES
const TABLE_BYTES = TABLE_SECTORS * SECTOR_BYTES

/** A region's first sector and its size in sectors. */
const sectors: Field<{ first: bigint; count: bigint }> = {
  size: 16,
  get: (b, at) => ({ first: b.readBigUInt64LE(at), count: b.readBigUInt64LE(at + 8) }),
  put: (b, at, v) => {
    b.writeBigUInt64LE(v.first, at)
    b.writeBigUInt64LE(v.count, at + 8)
  },
}

const CONSTANT_HEADER = layout({
  magic: bits64le,
  version: bits64le,
  capacity: bits64le,
  grain: bits64le,
  table: bits64le,
  flags: bits64le,
  reserved: bytes(32),
  volatileHeader: sectors,
  journalHeader: sectors,
  journal: sectors,
  directory: sectors,
  tables: sectors,
  freeBitmap: sectors,
  backMap: sectors,
  grains: sectors,
  padding: bytes(304),
})
const VOLATILE_HEADER = layout({
  magic: bits64le,
  freeTableNumber: bits64le,
  nextTransaction: bits64le,
  replayJournal: bits64le,
  padding: bytes(480),
})

/** The names of regions in messages, in the order of the header. */
const REGIONS = {
  volatileHeader: 'the volatile header',
  journalHeader: 'the journal header',
  journal: 'the journal',
  directory: 'the grain directory',
  tables: 'the grain tables',
  freeBitmap: 'the free bitmap',
  backMap: 'the back map',
  grains: 'the grains',
}
type RegionName = keyof typeof REGIONS

/** Plain data, in bytes, which can be sent to threads as a message. */
export interface SesparseHeader {
  readonly capacityBytes: number
  readonly grainBytes: number
  readonly regions: Readonly<Record<RegionName, Region>>
  readonly warnings: readonly string[]
}

type Fail = (code: ErrorCode, message: string, hint: string) => never

const RESTORE = 'restore it from a copy, or clone the disk with vmkfstools -i on its ESX host'
const CLONE = 'clone the disk with vmkfstools -i on its ESX host, and take the clone'

/** Reads and checks both headers. Throws ImageError, which names the file. */
export function readSesparseHeader(store: Store): SesparseHeader {
  const fail: Fail = (code, message, hint) => {
    throw new ImageError(code, message, { path: store.path, hint })
  }
  const head = Buffer.alloc(CONSTANT_HEADER.size)
  const got = store.read(head, 0, head.length, 0)
  const h = CONSTANT_HEADER.decode(head)
  if (h.magic !== CONSTANT_MAGIC) {
    fail(
      'NOT_AN_IMAGE',
      'this is no seSparse extent: it does not begin with 0xcafebabe',
      'give the format with --format, or leave it out to have it found',
    )
  }
  if (got < head.length) {
    fail('NOT_AN_IMAGE', `the seSparse header is cut off after ${got} bytes`, RESTORE)
  }
  checkConstants(h, fail)
  const capacity = h.capacity * BigInt(SECTOR_BYTES)
  if (isTooLarge(capacity)) throw tooLarge(store.path, capacity)
  const regions = regionsOf(h, fail)
  checkRegions(regions, store.sizeBytes, fail)
  const capacityBytes = Number(capacity)
  checkDirectory(regions.directory, h.capacity, fail)
  checkVolatileHeader(store, regions.volatileHeader, fail)
  return { capacityBytes, grainBytes: GRAIN_BYTES, regions, warnings: [] }
}

/** Throws if a constant differs from all known files: then it may mean anything. */
function checkConstants(h: ReturnType<typeof CONSTANT_HEADER.decode>, fail: Fail): void {
  const refuse = (what: string) => fail('UNSUPPORTED', what, CLONE)
  if (h.version !== VERSION) {
    refuse(`seSparse version ${hex(h.version)} is not known, only ${hex(VERSION)} is`)
  }
  if (h.grain !== BigInt(GRAIN_SECTORS)) {
    refuse(`seSparse grains of ${h.grain} sectors are not known, only of ${GRAIN_SECTORS}`)
  }
  if (h.table !== BigInt(TABLE_SECTORS)) {
    refuse(`seSparse grain tables of ${h.table} sectors are not known, only of ${TABLE_SECTORS}`)
  }
  if (h.flags !== 0n) refuse(`the seSparse flags ${hex(h.flags)} are not known`)
  if (!isZero(h.reserved)) refuse('the reserved fields of the seSparse header are not zero')
  if (!isZero(h.padding)) refuse('the padding of the seSparse header is not zero')
}

const hex = (value: bigint): string => `0x${value.toString(16)}`

const isZero = (field: Buffer): boolean => field.every(byte => byte === 0)

function regionsOf(
  h: ReturnType<typeof CONSTANT_HEADER.decode>,
  fail: Fail,
): Record<RegionName, Region> {
  const region = (name: RegionName): Region => {
    const { first, count } = h[name]
    if ((first + count) * BigInt(SECTOR_BYTES) > BigInt(Number.MAX_SAFE_INTEGER)) {
      const what = `${REGIONS[name]} cannot have ${count} sectors at sector ${first}`
      fail('CORRUPT', what, RESTORE)
    }
    return { offset: Number(first) * SECTOR_BYTES, bytes: Number(count) * SECTOR_BYTES }
  }
  const names = Object.keys(REGIONS) as RegionName[]
  return Object.fromEntries(names.map(name => [name, region(name)])) as Record<RegionName, Region>
}

/** Throws unless all regions except the growing one of the grains lie in the file, and no region overlaps another or the header. */
function checkRegions(regions: Record<RegionName, Region>, fileBytes: number, fail: Fail): void {
  const named = (Object.keys(REGIONS) as RegionName[]).map(name => ({
    name: REGIONS[name],
    ...regions[name],
  }))
  for (const { name, offset, bytes } of named) {
    if (name !== REGIONS.grains && offset + bytes > fileBytes) {
      const what = `${name} at ${offset} lies beyond the end of the file (${fileBytes} bytes)`
      fail('CORRUPT', what, RESTORE)
    }
  }
  const header = { name: 'the header', offset: 0, bytes: CONSTANT_HEADER.size }
  const both = overlap([header, ...named])
  if (both)
    fail('CORRUPT', `${both[1].name} at ${both[1].offset} overlaps ${both[0].name}`, RESTORE)
}

function checkDirectory({ bytes }: Region, capacity: bigint, fail: Fail): void {
  const entries = bytes / 8
  if (entries > MAX_GRAIN_DIRECTORY_ENTRIES) {
    fail(
      'CORRUPT',
      `the grain directory has ${entries} entries, above ${MAX_GRAIN_DIRECTORY_ENTRIES}`,
      RESTORE,
    )
  }
  const coverage = BigInt(TABLE_ENTRIES * GRAIN_SECTORS)
  const needed = (capacity + coverage - 1n) / coverage
  if (BigInt(entries) < needed) {
    const what = `the grain directory has ${entries} entries and the disk needs ${needed}`
    fail('CORRUPT', what, RESTORE)
  }
}

function checkVolatileHeader(store: Store, { offset, bytes }: Region, fail: Fail): void {
  if (bytes < VOLATILE_HEADER.size) fail('CORRUPT', 'it has no volatile header', RESTORE)
  const head = Buffer.alloc(VOLATILE_HEADER.size)
  store.read(head, 0, head.length, offset)
  const h = VOLATILE_HEADER.decode(head)
  if (h.magic !== VOLATILE_MAGIC) {
    fail('CORRUPT', `there is no volatile header at ${offset}: no 0xcafecafe`, RESTORE)
  }
  if (h.replayJournal !== 0n) {
    fail(
      'UNSUPPORTED',
      'it was not closed cleanly: some of its tables are still in its journal, which is not read',
      'open the disk once on its ESX host, which replays the journal, and close it there',
    )
  }
  if (!isZero(h.padding)) {
    fail('UNSUPPORTED', 'the padding of the volatile header is not zero', CLONE)
  }
}

/** Returns the start of the next structure after the grains, in bytes of the file; Infinity if there is none. */
export const grainsEnd = ({ regions }: SesparseHeader): number =>
  Object.values(regions)
    .filter(({ offset, bytes }) => bytes > 0 && offset > regions.grains.offset)
    .reduce((end, { offset }) => Math.min(end, offset), Number.POSITIVE_INFINITY)

export class SesparseDriver extends GrainTables {
  private readonly tables: Region
  private readonly tableCount: number
  private readonly grainsOffset: number
  private readonly grainsEnd: number

  constructor(parts: ExtentParts, header: SesparseHeader) {
    const { capacityBytes, grainBytes, regions } = header
    super(parts, {
      capacityBytes,
      grainBytes,
      entryBytes: SESPARSE_ENTRY_BYTES,
      directory: regions.directory,
    })
    this.tables = regions.tables
    this.tableCount = Math.floor(regions.tables.bytes / TABLE_BYTES)
    this.grainsOffset = regions.grains.offset
    this.grainsEnd = grainsEnd(header)
  }

  /** Returns true: all grains must be whole in the file. */
  protected isCutOff(): boolean {
    return true
  }

  protected tableOf(slice: Buffer, at: number, index: number): number {
    const low = slice.readUInt32LE(at)
    const high = slice.readUInt32LE(at + 4)
    if (high === 0 && low === 0) return 0
    if (high !== TABLE_IS_HERE) {
      const what = `the directory entry ${index} is 0x${hexEntry(high, low)}, which names no grain table`
      throw this.damage(what)
    }
    if (low >= this.tableCount) {
      const what = `the directory entry ${index} names the grain table ${low} of ${this.tableCount}`
      throw this.damage(what)
    }
    return this.tables.offset + low * TABLE_BYTES
  }

  protected entryOf(slice: Buffer, at: number): number {
    const low = slice.readUInt32LE(at)
    const high = slice.readUInt32LE(at + 4)
    switch (grainKind(high)) {
      case GRAIN.data: {
        const place = this.placeOf(high, low)
        return this.taken(place) === undefined ? place : DAMAGED
      }
      case GRAIN.unmapped:
      case GRAIN.zero:
        return ZERO
      default:
        return high === 0 && low === 0 ? PARENT : DAMAGED
    }
  }

  protected problemOf(slice: Buffer, at: number): string {
    const low = slice.readUInt32LE(at)
    const high = slice.readUInt32LE(at + 4)
    if (grainKind(high) !== GRAIN.data) {
      return `the grain table entry 0x${hexEntry(high, low)} means nothing`
    }
    const place = this.placeOf(high, low)
    return `a grain table entry maps a grain at ${place}, ${this.taken(place)}`
  }

  /** Returns the place of a grain; rounded above 2^53, past the end of any file. */
  private placeOf(high: number, low: number): number {
    return this.grainsOffset + grainIndex(high, low) * GRAIN_BYTES
  }

  private taken(place: number): string | undefined {
    if (place + GRAIN_BYTES > this.grainsEnd) return 'which is not among the grains'
    return place < this.fileBytes ? undefined : 'which is beyond the end of the file'
  }
}
