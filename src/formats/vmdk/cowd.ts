/**
 * COWD extents ("vmfsSparse"): ESX keeps snapshots in them on VMFS 5, and VMware kept disks in them before VMDK existed
 * (VMware, Virtual Disk Format 5.0, "ESX Server Sparse Extents"; libyal/libvmdk, "The COWD sparse extent data file").
 * Little-endian; all places and sizes are in sectors.
 *
 * There is one directory, tables lie anywhere, and no entry means "zeros": a grain is in the file or in the parent.
 */
import { bytes, layout, u32le } from '../../binary.js'
import { type ErrorCode, ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import { MAX_COWD_GRAIN_SECTORS, MAX_GRAIN_DIRECTORY_ENTRIES } from '../limits.js'
import {
  DAMAGED,
  GrainTables,
  PARENT,
  type Region,
  TABLE_ENTRIES,
  wholeSectors,
} from './grain-tables.js'
import type { ExtentParts } from './parts.js'
import { SECTOR_BYTES } from '../../sector.js'

export const MAGIC = 'COWD'

export const HEADER = layout({
  magic: bytes(4),
  version: u32le,
  flags: u32le,
  capacitySectors: u32le,
  grainSectors: u32le,
  directorySector: u32le,
  directoryEntries: u32le,
  freeSector: u32le,
  // A root has the geometry here.
  parentName: bytes(1024),
  parentGeneration: u32le,
  generation: u32le,
  name: bytes(60),
  description: bytes(512),
  savedGeneration: u32le,
  reserved: bytes(8),
  unclean: u32le,
})
/** Where the header's fields begin, in bytes of the file. */
export const COWD_FIELD_AT = HEADER.at
/** The fields and their padding: four sectors. */
export const COWD_HEADER_BYTES = 2048

/**
 * The names are those of fox-it/dissect.hypervisor, c_vmdk.py. ESX also sets `root` in its snapshots, whose parents are named
 * in the descriptor.
 */
const FLAG = { root: 1, inconsistent: 4 }

/** Plain data, in bytes, which can be sent to threads as a message. */
export interface CowdHeader {
  readonly capacityBytes: number
  readonly grainBytes: number
  readonly flags: number
  readonly directoryOffset: number
  readonly directoryEntries: number
  /** The place for the next table or grain, according to the header. The file's length decides. */
  readonly freeOffset: number
  /** Undefined for a root. */
  readonly parent: { readonly name: string; readonly generation: number } | undefined
  readonly generation: number
  readonly name: string
  readonly description: string
  readonly isUnclean: boolean
  readonly warnings: readonly string[]
}

const RESTORE = 'restore it from a copy, or clone the disk with vmkfstools -i on its ESX host'

/** Reads and checks the whole header. Throws ImageError, which names the file. */
export function readCowdHeader(store: Store): CowdHeader {
  const fail = (code: ErrorCode, message: string, hint: string): never => {
    throw new ImageError(code, message, { path: store.path, hint })
  }
  const head = Buffer.alloc(COWD_HEADER_BYTES)
  const got = store.read(head, 0, head.length, 0)
  if (head.toString('latin1', 0, MAGIC.length) !== MAGIC) {
    fail(
      'NOT_AN_IMAGE',
      `this is no COWD extent: its first bytes are not "${MAGIC}"`,
      'give the format with --format, or leave it out to have it found',
    )
  }
  if (got < COWD_HEADER_BYTES) {
    fail('NOT_AN_IMAGE', `the COWD header is cut off after ${got} bytes`, RESTORE)
  }
  const h = HEADER.decode(head)
  if (h.version !== 1) {
    fail('UNSUPPORTED', `COWD version ${h.version} is not known`, 'version 1 is read')
  }
  const { grainSectors } = h
  if (grainSectors === 0 || grainSectors > MAX_COWD_GRAIN_SECTORS || !isPowerOfTwo(grainSectors)) {
    fail(
      'CORRUPT',
      `the header gives grains of ${grainSectors} sectors, not a power of two from 1 to ${MAX_COWD_GRAIN_SECTORS}`,
      RESTORE,
    )
  }
  const header: CowdHeader = {
    capacityBytes: h.capacitySectors * SECTOR_BYTES,
    grainBytes: grainSectors * SECTOR_BYTES,
    flags: h.flags,
    directoryOffset: h.directorySector * SECTOR_BYTES,
    directoryEntries: h.directoryEntries,
    freeOffset: h.freeSector * SECTOR_BYTES,
    parent:
      h.flags & FLAG.root
        ? undefined
        : { name: text(h.parentName), generation: h.parentGeneration },
    generation: h.generation,
    name: text(h.name),
    description: text(h.description),
    isUnclean: h.unclean !== 0,
    warnings: [],
  }
  const problem = directoryProblem(header, store.sizeBytes)
  if (problem !== undefined) fail('CORRUPT', problem, RESTORE)
  return { ...header, warnings: warningsOf(header, store.sizeBytes) }
}

const isPowerOfTwo = (value: number): boolean => (value & (value - 1)) === 0

/** Returns what is wrong with the place of the directory, if anything. */
function directoryProblem(header: CowdHeader, fileBytes: number): string | undefined {
  const { capacityBytes, grainBytes, directoryEntries } = header
  const needed = Math.ceil(capacityBytes / (grainBytes * TABLE_ENTRIES))
  if (directoryEntries > MAX_GRAIN_DIRECTORY_ENTRIES) {
    return `the grain directory has ${directoryEntries} entries, above ${MAX_GRAIN_DIRECTORY_ENTRIES}`
  }
  if (directoryEntries < needed) {
    return `the grain directory has ${directoryEntries} entries and the disk needs ${needed}`
  }
  const { offset, bytes } = directoryOf(header)
  if (offset < COWD_HEADER_BYTES) return `the grain directory at ${offset} lies over the header`
  if (offset + bytes > fileBytes) {
    return `the grain directory at ${offset} lies beyond the end of the file (${fileBytes} bytes)`
  }
  return undefined
}

function warningsOf(header: CowdHeader, fileBytes: number): string[] {
  const warnings: string[] = []
  if (header.isUnclean) {
    warnings.push('it was not closed cleanly: what was written last may be missing')
  }
  if (header.flags & FLAG.inconsistent) warnings.push('it is marked inconsistent')
  if (header.freeOffset > fileBytes) {
    const missing = header.freeOffset - fileBytes
    warnings.push(`its last ${missing} bytes are missing; reading what lies in them fails`)
  }
  return warnings
}

function directoryOf(header: CowdHeader): Region {
  return { offset: header.directoryOffset, bytes: wholeSectors(header.directoryEntries * 4) }
}

/** Returns the text up to the first NUL, or all of it. */
function text(field: Buffer): string {
  const nul = field.indexOf(0)
  return field.toString('utf8', 0, nul < 0 ? field.length : nul)
}

const TABLE_BYTES = TABLE_ENTRIES * 4

export class CowdDriver extends GrainTables {
  private readonly directoryStart: number
  private readonly directoryEnd: number
  private readonly freeOffset: number

  constructor(parts: ExtentParts, header: CowdHeader) {
    const directory = directoryOf(header)
    const { capacityBytes, grainBytes } = header
    super(parts, { capacityBytes, grainBytes, entryBytes: 4, directory })
    this.freeOffset = header.freeOffset
    this.directoryStart = directory.offset
    this.directoryEnd = directory.offset + directory.bytes
  }

  protected isCutOff(): boolean {
    return this.fileBytes < this.freeOffset || this.fileBytes % SECTOR_BYTES !== 0
  }

  protected tableOf(slice: Buffer, at: number, index: number): number {
    const table = slice.readUInt32LE(at) * SECTOR_BYTES
    if (table === 0) return 0
    const where = this.taken(table, TABLE_BYTES)
    if (where === undefined) return table
    throw this.damage(`the directory entry ${index} names a grain table at ${table}, ${where}`)
  }

  protected entryOf(slice: Buffer, at: number, table: number): number {
    const place = slice.readUInt32LE(at) * SECTOR_BYTES
    if (place === 0) return PARENT
    return this.grainTaken(place, table) === undefined ? place : DAMAGED
  }

  protected problemOf(slice: Buffer, at: number, table: number): string {
    const place = slice.readUInt32LE(at) * SECTOR_BYTES
    return `a grain table entry maps a grain at ${place}, ${this.grainTaken(place, table)}`
  }

  private grainTaken(place: number, table: number): string | undefined {
    if (place < table + TABLE_BYTES && place + this.unitBytes > table) {
      return 'which lies over its own table'
    }
    return this.taken(place, this.unitBytes)
  }

  /** Returns why no table or grain of `length` bytes can lie at `at`; undefined if it can. */
  private taken(at: number, length: number): string | undefined {
    if (at < COWD_HEADER_BYTES) return 'which lies over the header'
    if (at < this.directoryEnd && at + length > this.directoryStart) {
      return 'which lies over the grain directory'
    }
    return at < this.fileBytes ? undefined : 'which is beyond the end of the file'
  }
}
