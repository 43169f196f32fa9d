/**
 * A new COWD extent, as ESX keeps snapshots in: grains of one sector, and tables that are made where they are needed (VMware,
 * Virtual Disk Format 5.0, "ESX Server Sparse Extents").
 */
import { ImageError } from '../../../errors.js'
import type { WritableStore } from '../../../io/store.js'
import type { Place } from '../../creating.js'
import { COWD_HEADER_BYTES as HEADER_BYTES, HEADER, MAGIC } from '../cowd.js'
import { TABLE_ENTRIES } from '../grain-tables.js'
import { MAX_FILE_BYTES } from '../layout.js'
import { SECTOR_BYTES } from '../../../sector.js'
import { type NewExtent, requireReach } from './extent.js'

const TABLE_BYTES = TABLE_ENTRIES * 4
/** What ESX writes, also for disks with a parent: only the descriptor names that. */
const FLAGS = 3
const DIRECTORY_SECTOR = HEADER_BYTES / SECTOR_BYTES

export class CowdExtent implements NewExtent {
  readonly unitBytes = SECTOR_BYTES
  private readonly directory: Buffer
  private readonly directoryEntries: number
  private readonly table = Buffer.alloc(TABLE_BYTES)
  /** The index of the table in `table`, and its place in bytes; -1 for none. */
  private current = -1
  private tableAt = 0
  private nextAt: number

  constructor(
    private readonly store: WritableStore,
    private readonly sizeBytes: number,
  ) {
    if (sizeBytes > MAX_FILE_BYTES) {
      throw new ImageError('REFUSED', `vmfsSparse cannot hold a disk of ${sizeBytes} bytes`, {
        path: store.path,
        hint: 'use subformat=monolithicSparse',
      })
    }
    this.directoryEntries = Math.ceil(sizeBytes / (TABLE_ENTRIES * SECTOR_BYTES))
    const sectors = Math.ceil((this.directoryEntries * 4) / SECTOR_BYTES)
    this.directory = Buffer.alloc(sectors * SECTOR_BYTES)
    this.nextAt = HEADER_BYTES + this.directory.length
  }

  place(offset: number, length: number): readonly Place[] {
    const places: Place[] = []
    const coverage = TABLE_ENTRIES * SECTOR_BYTES
    const end = offset + length
    for (let at = offset; at < end; ) {
      const index = Math.floor(at / coverage)
      this.open(index)
      const stop = Math.min(end, (index + 1) * coverage)
      const start = this.nextAt
      requireReach(this.store, start + stop - at)
      places.push({ store: this.store, at: start, length: stop - at })
      for (; at < stop; at += SECTOR_BYTES) {
        this.table.writeUInt32LE(this.nextAt / SECTOR_BYTES, ((at % coverage) / SECTOR_BYTES) * 4)
        this.nextAt += SECTOR_BYTES
      }
    }
    return places
  }

  pack(): void {
    throw new TypeError('only streamOptimized is compressed')
  }

  /** No entry means zeros, so sectors are made. What is never written there reads as zeros. */
  zero(offset: number, length: number): void {
    this.place(offset, length)
  }

  finish(): void {
    this.writeTable()
    this.store.write(this.directory, 0, this.directory.length, HEADER_BYTES)
    if (this.store.sizeBytes < this.nextAt) this.store.truncate(this.nextAt)
    const header = HEADER.encode({
      magic: Buffer.from(MAGIC),
      version: 1,
      flags: FLAGS,
      capacitySectors: this.sizeBytes / SECTOR_BYTES,
      grainSectors: 1,
      directorySector: DIRECTORY_SECTOR,
      directoryEntries: this.directoryEntries,
      freeSector: this.nextAt / SECTOR_BYTES,
      parentName: Buffer.alloc(1024),
      parentGeneration: 0,
      generation: 0,
      name: Buffer.alloc(60),
      description: Buffer.alloc(512),
      savedGeneration: 0,
      reserved: Buffer.alloc(8),
      unclean: 0,
    })
    this.store.write(Buffer.concat([header], HEADER_BYTES), 0, HEADER_BYTES, 0)
  }

  private open(index: number): void {
    if (index === this.current) return
    this.writeTable()
    this.current = index
    this.tableAt = this.nextAt
    requireReach(this.store, this.tableAt + TABLE_BYTES)
    this.nextAt += TABLE_BYTES
    this.directory.writeUInt32LE(this.tableAt / SECTOR_BYTES, index * 4)
  }

  private writeTable(): void {
    if (this.current < 0) return
    this.store.write(this.table, 0, TABLE_BYTES, this.tableAt)
    this.table.fill(0)
    this.current = -1
  }
}
