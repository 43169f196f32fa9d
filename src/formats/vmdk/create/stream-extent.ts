/**
 * A new streamOptimized extent as VMware's tools write it: compressed grains with their markers in the order of the disk, each
 * table after its grains, then the directory and a footer, which alone says where the directory is (VMware, Virtual Disk Format
 * 5.0, "Stream-Optimized Compressed Sparse Extents").
 */
import zlib from 'node:zlib'
import { layout, u32le, u64le } from '../../../binary.js'
import type { WritableStore } from '../../../io/store.js'
import type { Packing, Place } from '../../creating.js'
import { maxPackedBytes } from '../grain.js'
import { SECTOR_BYTES } from '../../../sector.js'
import {
  AT_END,
  DEFLATE,
  FLAG,
  HEADER,
  MAGIC,
  MARKER,
  MARKER_TYPE,
  NEWLINES,
} from '../sparse-header.js'
import { type NewExtent, requireReach } from './extent.js'
import { DESCRIPTOR } from './sparse-extent.js'

const GRAIN_SECTORS = 128
const TABLE_ENTRIES = 512
const TABLE_SECTORS = 4
/** Where the grains begin. */
const OVERHEAD_SECTORS = 128
const BUFFER_BYTES = 2 ** 20

const GRAIN_MARKER = layout({ sector: u64le, packedBytes: u32le })

const inSectors = (bytes: number): number => Math.ceil(bytes / SECTOR_BYTES) * SECTOR_BYTES

/** Returns the most bytes that an extent of `sizeBytes` bytes can have with so many grains. */
export function streamBytes(sizeBytes: number, grains: number): number {
  const tables = Math.ceil(sizeBytes / (GRAIN_SECTORS * SECTOR_BYTES * TABLE_ENTRIES))
  // Data that cannot be compressed become longer by 33 bytes at most (zlib, deflateBound), and have a marker of 12.
  const perGrain = (GRAIN_SECTORS + 1) * SECTOR_BYTES
  // Each table and the directory have a marker; the footer has two, with the end's.
  const markers = (tables + 1 + 2) * SECTOR_BYTES
  const ends = inSectors(tables * 4) + SECTOR_BYTES
  const fixed = OVERHEAD_SECTORS * SECTOR_BYTES + markers + ends
  return fixed + tables * TABLE_SECTORS * SECTOR_BYTES + grains * perGrain
}

export class StreamExtent implements NewExtent {
  readonly unitBytes = GRAIN_SECTORS * SECTOR_BYTES
  readonly packing: Packing = {
    type: 'zlib',
    maxBytes: maxPackedBytes(GRAIN_SECTORS * SECTOR_BYTES) - GRAIN_MARKER.size,
  }
  private readonly table = Buffer.alloc(TABLE_SECTORS * SECTOR_BYTES)
  /** The number of that table; -1 for none. */
  private current = -1
  private readonly directory: Buffer
  /** Sectors that are not written yet, and where they go. */
  private readonly buffer = Buffer.allocUnsafe(BUFFER_BYTES)
  private used = 0
  private bufferAt = OVERHEAD_SECTORS * SECTOR_BYTES

  constructor(
    private readonly store: WritableStore,
    private readonly sizeBytes: number,
    private readonly hasParent: boolean,
  ) {
    const tables = Math.ceil(sizeBytes / (this.unitBytes * TABLE_ENTRIES))
    this.directory = Buffer.alloc(Math.ceil((tables * 4) / SECTOR_BYTES) * SECTOR_BYTES)
  }

  place(): readonly Place[] {
    throw new TypeError('a stream has only compressed grains')
  }

  pack(offset: number, packed: Buffer): void {
    const grain = offset / this.unitBytes
    const index = Math.floor(grain / TABLE_ENTRIES)
    if (index !== this.current) {
      this.writeTable()
      this.current = index
    }
    const sector = this.nextSector
    const marker = GRAIN_MARKER.encode({
      sector: offset / SECTOR_BYTES,
      packedBytes: packed.length,
    })
    this.append(marker, packed)
    this.table.writeUInt32LE(sector, (grain % TABLE_ENTRIES) * 4)
  }

  zero(offset: number, length: number): void {
    if (!this.hasParent) return
    const zeros = zlib.deflateSync(Buffer.alloc(this.unitBytes))
    for (let at = offset; at < offset + length; at += this.unitBytes) this.pack(at, zeros)
  }

  finish(): void {
    this.writeTable()
    this.mark(MARKER_TYPE.directory, this.directory.length / SECTOR_BYTES)
    const directorySector = this.nextSector
    if (this.directory.length > 0) this.append(this.directory)
    this.mark(MARKER_TYPE.footer, 1)
    this.append(this.header(BigInt(directorySector)))
    this.mark(MARKER_TYPE.endOfStream, 0)
    this.writeOut()
    this.store.write(this.header(AT_END), 0, SECTOR_BYTES, 0)
  }

  private get nextSector(): number {
    return (this.bufferAt + this.used) / SECTOR_BYTES
  }

  private writeTable(): void {
    if (this.current < 0) return
    this.mark(MARKER_TYPE.table, TABLE_SECTORS)
    this.directory.writeUInt32LE(this.nextSector, this.current * 4)
    this.append(this.table)
    this.table.fill(0)
    this.current = -1
  }

  /** Writes the marker of a table, the directory, the footer or the end; `sectors` of them follow. */
  private mark(type: number, sectors: number): void {
    this.append(MARKER.encode({ sectors: BigInt(sectors), size: 0, type }))
  }

  /** Appends bytes, and fills up their last sector with zeros. */
  private append(...parts: readonly Buffer[]): void {
    const bytes = parts.reduce((sum, { length }) => sum + length, 0)
    const whole = Math.ceil(bytes / SECTOR_BYTES) * SECTOR_BYTES
    requireReach(this.store, this.bufferAt + this.used + whole)
    if (whole > BUFFER_BYTES) {
      this.writeOut()
      const all = Buffer.concat(parts, whole)
      this.store.write(all, 0, whole, this.bufferAt)
      this.bufferAt += whole
      return
    }
    if (this.used + whole > BUFFER_BYTES) this.writeOut()
    for (const part of parts) this.used += part.copy(this.buffer, this.used)
    this.buffer.fill(0, this.used, this.used + whole - bytes)
    this.used += whole - bytes
  }

  private writeOut(): void {
    this.store.write(this.buffer, 0, this.used, this.bufferAt)
    this.bufferAt += this.used
    this.used = 0
  }

  private header(directory: bigint): Buffer {
    const header = Buffer.alloc(SECTOR_BYTES)
    HEADER.put(header, 0, {
      magic: MAGIC,
      version: 3,
      flags: FLAG.newlines | FLAG.compressed | FLAG.markers,
      capacity: BigInt(this.sizeBytes / SECTOR_BYTES),
      grain: BigInt(GRAIN_SECTORS),
      descriptorOffset: BigInt(DESCRIPTOR.sector),
      descriptorSize: BigInt(DESCRIPTOR.sectors),
      tableEntries: TABLE_ENTRIES,
      redundantDirectory: 0n,
      directory,
      overhead: BigInt(OVERHEAD_SECTORS),
      unclean: 0,
      newlines: NEWLINES,
      compression: DEFLATE,
    })
    return header
  }
}
