/**
 * A new hosted sparse extent, laid out as QEMU does: the header, room for a descriptor, both directories with all their tables,
 * then the grains in the order of the disk (VMware, Virtual Disk Format 5.0, "Hosted Sparse Extents").
 */
import type { WritableStore } from '../../../io/store.js'
import type { Place } from '../../creating.js'
import { SECTOR_BYTES } from '../../../sector.js'
import { FLAG, HEADER, MAGIC, NEWLINES } from '../sparse-header.js'
import { type NewExtent, requireReach } from './extent.js'

const GRAIN_SECTORS = 128
const TABLE_ENTRIES = 512
const TABLE_SECTORS = 4
export const DESCRIPTOR = { sector: 1, sectors: 20 }
/** The entry of a grain that is zeros. */
const ZERO_GRAIN = 1

export const GRAIN_BYTES = GRAIN_SECTORS * SECTOR_BYTES

/** Returns where the tables of an extent of `sizeBytes` bytes lie, in sectors. */
export function sparseLayout(sizeBytes: number) {
  const tableCount = Math.ceil(Math.ceil(sizeBytes / GRAIN_BYTES) / TABLE_ENTRIES)
  const directorySectors = Math.ceil((tableCount * 4) / SECTOR_BYTES)
  const each = directorySectors + tableCount * TABLE_SECTORS
  const redundantSector = DESCRIPTOR.sector + DESCRIPTOR.sectors
  const directorySector = redundantSector + each
  const firstGrainSector = Math.ceil((directorySector + each) / GRAIN_SECTORS) * GRAIN_SECTORS
  return { tableCount, directorySectors, redundantSector, directorySector, firstGrainSector }
}

export class SparseExtent implements NewExtent {
  readonly unitBytes = GRAIN_BYTES
  private readonly tableCount: number
  private readonly directorySectors: number
  private readonly redundantSector: number
  private readonly directorySector: number
  private readonly firstGrainSector: number
  /** Where the next grain goes. */
  private nextSector: number
  /** The table that is being filled, and its number; -1 for none. */
  private readonly table = Buffer.alloc(TABLE_SECTORS * SECTOR_BYTES)
  private current = -1

  constructor(
    private readonly store: WritableStore,
    private readonly sizeBytes: number,
    private readonly hasZeroGrains: boolean,
    private readonly hasParent: boolean,
  ) {
    const layout = sparseLayout(sizeBytes)
    this.tableCount = layout.tableCount
    this.directorySectors = layout.directorySectors
    this.redundantSector = layout.redundantSector
    this.directorySector = layout.directorySector
    this.firstGrainSector = layout.firstGrainSector
    requireReach(store, this.firstGrainSector * SECTOR_BYTES)
    this.nextSector = this.firstGrainSector
  }

  place(offset: number, length: number): readonly Place[] {
    const at = this.nextSector * SECTOR_BYTES
    const end = offset + length
    requireReach(this.store, at + Math.ceil(length / this.unitBytes) * this.unitBytes)
    for (let grain = offset; grain < end; grain += this.unitBytes) {
      this.setEntry(grain, this.nextSector)
      this.nextSector += GRAIN_SECTORS
    }
    return [{ store: this.store, at, length }]
  }

  pack(): void {
    throw new TypeError('only streamOptimized is compressed')
  }

  zero(offset: number, length: number): void {
    if (!this.hasParent) return
    if (this.hasZeroGrains) {
      const end = offset + length
      for (let at = offset; at < end; at += this.unitBytes) this.setEntry(at, ZERO_GRAIN)
    } else {
      // Bytes that are never written there read as zeros.
      this.place(offset, length)
    }
  }

  finish(): void {
    this.writeTable()
    for (const sector of [this.redundantSector, this.directorySector]) {
      const directory = Buffer.alloc(this.directorySectors * SECTOR_BYTES)
      for (let i = 0; i < this.tableCount; i++) {
        directory.writeUInt32LE(sector + this.directorySectors + i * TABLE_SECTORS, i * 4)
      }
      this.store.write(directory, 0, directory.length, sector * SECTOR_BYTES)
    }
    // The last grain is whole, also where the disk ends within it.
    const endAt = this.nextSector * SECTOR_BYTES
    if (this.store.sizeBytes < endAt) this.store.truncate(endAt)
    this.store.write(this.header(), 0, SECTOR_BYTES, 0)
  }

  private header(): Buffer {
    const header = Buffer.alloc(SECTOR_BYTES)
    HEADER.put(header, 0, {
      magic: MAGIC,
      version: this.hasZeroGrains ? 2 : 1,
      flags: FLAG.newlines | FLAG.redundant | (this.hasZeroGrains ? FLAG.zeroGrains : 0),
      capacity: BigInt(this.sizeBytes / SECTOR_BYTES),
      grain: BigInt(GRAIN_SECTORS),
      descriptorOffset: BigInt(DESCRIPTOR.sector),
      descriptorSize: BigInt(DESCRIPTOR.sectors),
      tableEntries: TABLE_ENTRIES,
      redundantDirectory: BigInt(this.redundantSector),
      directory: BigInt(this.directorySector),
      overhead: BigInt(this.firstGrainSector),
      unclean: 0,
      newlines: NEWLINES,
      compression: 0,
    })
    return header
  }

  private setEntry(offset: number, value: number): void {
    const grain = offset / this.unitBytes
    const index = Math.floor(grain / TABLE_ENTRIES)
    if (index !== this.current) {
      this.writeTable()
      this.current = index
    }
    this.table.writeUInt32LE(value, (grain % TABLE_ENTRIES) * 4)
  }

  private writeTable(): void {
    if (this.current < 0) return
    for (const sector of [this.redundantSector, this.directorySector]) {
      const at = sector + this.directorySectors + this.current * TABLE_SECTORS
      this.store.write(this.table, 0, this.table.length, at * SECTOR_BYTES)
    }
    this.table.fill(0)
    this.current = -1
  }
}
