/**
 * Writes a sparse extent, hosted or COWD (VMware, Virtual Disk Format 5.0, "Hosted Sparse Extents", "ESX Server Sparse
 * Extents").
 *
 *  (1) Grains and grain tables are appended to the file and never given back. A range that reads as zeros again is a hole of
 *      the file. So the space past the end of the file belongs to nobody and reads as zeros.
 *  (2) A grain is whole on the disk before an entry names it; a table is before the directory names it.
 *  (3) A redundant table is a copy of the first one. It does not matter which of them is older after a power cut: the next
 *      writer makes them equal again, because until the end the header says that it has to check.
 *  (4) The header's next free sector is on the disk before anything past the old one is named.
 *  (5) A table has its space on the file system before a write that changes it returns: otherwise a flush that finds the file
 *      system full would lose many writes that had succeeded.
 */
import { type TablePool, SLICE_BYTES } from '../../cache/table-pool.js'
import { orEndWriting } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import { appending, cutBack, endAppended } from '../appending.js'
import { preallocate } from '../preallocate.js'
import type { Reservation } from '../writable.js'
import { wholeSectors } from './grain-tables.js'
import { type GrainLayout, MAX_FILE_BYTES, tableBytesOf } from './layout.js'
import type { ReadTable } from './parts.js'
import { requireReach } from './repair/mend.js'
import { SECTOR_BYTES } from '../../sector.js'
import { ENTRY_BYTES, UNALLOCATED, ZERO, STAGE } from './entries.js'

/** The most bytes of grains of one reservation. */
const MAX_RUN_BYTES = 2 ** 21
/** The most slices that one step changes: a table and its copy, their entries, and the header. */
export const STEP_SLICES = 16

export interface GrainWriterParts {
  readonly layout: GrainLayout
  /** The size of the extent's part of the disk, in bytes; its last grain may reach past it. */
  readonly sizeBytes: number
  readonly store: WritableStore
  /** The start of its file in the space of the cache and the pool, and how long it may become there. */
  readonly base: number
  readonly spanBytes: number
  readonly readTable: ReadTable
  readonly pool: TablePool
}

/** `offset` and `length` are relative to the extent. */
export interface GrainReservation extends Reservation {
  /** The entry of the directory that maps it, the first entry in that table, and the number of entries. */
  readonly table: number
  readonly first: number
  readonly grains: number
}

/** A part of a table. */
interface Slice {
  readonly at: number
  readonly length: number
}

export class GrainWriter {
  readonly grainBytes: number
  private readonly tableBytes: number
  private readonly directoryBytes: number
  /** How many bytes of the disk a table maps. */
  private readonly coverage: number

  constructor(private readonly parts: GrainWriterParts) {
    const { layout } = parts
    this.grainBytes = layout.grainBytes
    this.tableBytes = tableBytesOf(layout)
    this.directoryBytes = wholeSectors(layout.directoryEntries * ENTRY_BYTES)
    this.coverage = layout.grainBytes * layout.tableEntries
  }

  /** Reserves grains for a piece of the disk that has none; see WritableDriver.reserve. */
  reserve(offset: number, length: number): GrainReservation {
    const { store } = this.parts
    const { grainBytes } = this
    const table = Math.floor(offset / this.coverage)
    const place = this.ownTable(table)
    const inGrain = offset % grainBytes
    const first = Math.floor((offset - table * this.coverage) / grainBytes)
    const wanted = Math.min(inGrain + length, Math.max(MAX_RUN_BYTES, grainBytes))
    const grains = this.grainless(place, first, Math.ceil(wanted / grainBytes))
    this.preallocateEntries(table, first, grains)
    const at = Math.ceil(store.sizeBytes / grainBytes) * grainBytes
    this.requireReachable(at + grains * grainBytes)
    const start = offset - inGrain
    return {
      offset: start,
      length: Math.min(grains * grainBytes, this.parts.sizeBytes - start),
      store,
      at,
      isZeroed: true, // rule (1)
      table,
      first,
      grains,
    }
  }

  link({ table, first, grains, at }: GrainReservation): void {
    const { store } = this.parts
    const end = at + grains * this.grainBytes
    endAppended(store, at, end)
    this.noteFree(end)
    const perGrain = this.grainBytes / SECTOR_BYTES
    this.setEntries(table, first, grains, i => at / SECTOR_BYTES + i * perGrain)
  }

  cancel({ at }: GrainReservation): void {
    cutBack(this.parts.store, at)
  }

  /**
   * Makes whole unallocated grains read as zeros, whatever the parent has; at most `length` bytes from `offset` on. Returns how
   * many bytes are done; 0 if no whole grain is covered.
   */
  zeroGrainless(offset: number, length: number): number {
    const { layout, sizeBytes } = this.parts
    if (offset % this.grainBytes !== 0) return 0
    const isEnd = offset + length === sizeBytes
    const whole = isEnd ? length : Math.floor(length / this.grainBytes) * this.grainBytes
    if (whole === 0) return 0
    if (!layout.hasZeroGrains) {
      // Reserve grains and write nothing to them.
      const reservation = this.reserve(offset, whole)
      this.link(reservation)
      return Math.min(reservation.length, whole)
    }
    const table = Math.floor(offset / this.coverage)
    const first = Math.floor((offset - table * this.coverage) / this.grainBytes)
    const place = this.ownTable(table)
    const grains = this.grainless(place, first, Math.ceil(whole / this.grainBytes))
    this.preallocateEntries(table, first, grains)
    this.noteFree(0)
    this.setEntries(table, first, grains, () => ZERO)
    return Math.min(grains * this.grainBytes, whole)
  }

  /**
   * Sets the header's next free sector to the end of the file, if it lies before `usedBytes` (then other programs would
   * overwrite grains) or past the end of the file (then they would miss some). Returns whether it did.
   */
  mendFreeSector(usedBytes: number): boolean {
    const { store, layout, pool, base } = this.parts
    const { freeSectorAt, headerBytes } = layout
    if (freeSectorAt === undefined) return false
    const sectors = Math.ceil(Math.min(store.sizeBytes, MAX_FILE_BYTES) / SECTOR_BYTES)
    const free = this.read({ at: 0, length: headerBytes }).readUInt32LE(freeSectorAt)
    if (free * SECTOR_BYTES >= usedBytes && free <= sectors) return false
    const field = Buffer.alloc(4)
    field.writeUInt32LE(sectors)
    pool.forget(base, headerBytes)
    store.write(field, 0, field.length, freeSectorAt)
    return true
  }

  /** Whether the header says that the extent is open for writing, or will say so after the next flush. */
  get isOpen(): boolean {
    return this.saysOpen(this.read({ at: 0, length: this.parts.layout.headerBytes }))
  }

  private saysOpen(header: Buffer): boolean {
    const { uncleanAt, uncleanBytes } = this.parts.layout
    return header.readUIntLE(uncleanAt, uncleanBytes) !== 0
  }

  /** Marks the extent in its header as closed. All tables must be on the disk. */
  close(): void {
    const { store, layout, pool, base } = this.parts
    pool.forget(base, layout.headerBytes)
    const { uncleanAt, uncleanBytes } = layout
    orEndWriting(() => store.write(Buffer.alloc(uncleanBytes), 0, uncleanBytes, uncleanAt))
  }

  /** Returns how many entries from `first` on name no grain; at least 1, at most `wanted`. */
  private grainless(place: number, first: number, wanted: number): number {
    const most = Math.min(wanted, this.parts.layout.tableEntries - first)
    for (let count = 1; ; ) {
      if (count >= most) return most
      const slice = this.tableSlice(place, first + count)
      const bytes = this.read(slice)
      let at = ((first + count) * ENTRY_BYTES) % SLICE_BYTES
      for (; count < most && at < slice.length; count++, at += ENTRY_BYTES) {
        if (this.isGrain(bytes.readUInt32LE(at))) return count
      }
    }
  }

  private isGrain(entry: number): boolean {
    return entry !== UNALLOCATED && !(entry === ZERO && this.parts.layout.hasZeroGrains)
  }

  /** Returns the place of the table of a directory's entry. Makes it, and its copy, if there is none. */
  private ownTable(index: number): number {
    const { directoryAt, redundantDirectoryAt } = this.parts.layout
    const table = this.tableAt(directoryAt, index)
    const hasCopy =
      redundantDirectoryAt === undefined || this.tableAt(redundantDirectoryAt, index) !== 0
    if (table === 0 || !hasCopy) this.addTables(index, table === 0, !hasCopy)
    return table === 0 ? this.tableAt(directoryAt, index) : table
  }

  /** Appends new tables, all zeros, to the file. */
  private addTables(index: number, first: boolean, copy: boolean): void {
    const { store, layout } = this.parts
    const at = wholeSectors(store.sizeBytes)
    const end = at + this.tableBytes * (Number(first) + Number(copy))
    this.requireReachable(end)
    const { directoryAt, redundantDirectoryAt } = layout
    if (first) this.preallocateSlice(this.directorySlice(directoryAt, index))
    if (copy) this.preallocateSlice(this.directorySlice(redundantDirectoryAt as number, index))
    appending(store, () => store.write(Buffer.alloc(end - at), 0, end - at, at))
    this.parts.pool.forget(this.parts.base + at, end - at)
    this.noteFree(end)
    if (first) this.setDirectory(directoryAt, index, at)
    if (copy) this.setDirectory(redundantDirectoryAt as number, index, end - this.tableBytes)
  }

  /** Applies rule (5) to entries of a table and of its copy. */
  private preallocateEntries(table: number, first: number, count: number): void {
    const { directoryAt, redundantDirectoryAt } = this.parts.layout
    for (const directory of [directoryAt, redundantDirectoryAt]) {
      if (directory === undefined) continue
      const place = this.tableAt(directory, table)
      for (let index = first; index < first + count; index += SLICE_BYTES / ENTRY_BYTES) {
        this.preallocateSlice(this.tableSlice(place, index))
      }
      this.preallocateSlice(this.tableSlice(place, first + count - 1))
    }
  }

  /** Applies rule (5). A slice that is in the pool has its space already. */
  private preallocateSlice({ at, length }: Slice): void {
    const { store, pool, base } = this.parts
    if (pool.find(base + at) !== undefined) return
    preallocate(store, at, length)
  }

  private setDirectory(directoryAt: number, index: number, table: number): void {
    const slice = this.directorySlice(directoryAt, index)
    const at = (index * ENTRY_BYTES) % SLICE_BYTES
    this.edit(slice, STAGE.entries).writeUInt32LE(table / SECTOR_BYTES, at)
  }

  /** Returns the place of the table that an entry of the directory at `directoryAt` names; 0 for none. */
  private tableAt(directoryAt: number, index: number): number {
    const slice = this.read(this.directorySlice(directoryAt, index))
    return slice.readUInt32LE((index * ENTRY_BYTES) % SLICE_BYTES) * SECTOR_BYTES
  }

  /** Sets entries in a table and in its copy: rule (3). */
  private setEntries(
    table: number,
    first: number,
    count: number,
    valueOf: (i: number) => number,
  ): void {
    const { directoryAt, redundantDirectoryAt } = this.parts.layout
    const place = this.tableAt(directoryAt, table)
    const copy = redundantDirectoryAt && this.tableAt(redundantDirectoryAt, table)
    for (let i = 0; i < count; ) {
      const slice = this.tableSlice(place, first + i)
      const bytes = this.edit(slice, STAGE.entries)
      let at = ((first + i) * ENTRY_BYTES) % SLICE_BYTES
      for (; i < count && at < slice.length; i++, at += ENTRY_BYTES) {
        bytes.writeUInt32LE(valueOf(i), at)
      }
      if (!copy) continue
      const twin = { at: copy + slice.at - place, length: slice.length }
      this.edit(twin, STAGE.entries).set(bytes)
    }
  }

  /** Writes the next free sector (rule 4), and that the extent is open. `end` is the end of the space in use, in bytes. */
  private noteFree(end: number): void {
    const { layout } = this.parts
    const { headerBytes, uncleanAt, freeSectorAt } = layout
    const slice = { at: 0, length: headerBytes }
    const known = this.read(slice)
    const free = freeSectorAt === undefined ? 0 : known.readUInt32LE(freeSectorAt)
    const sectors = end / SECTOR_BYTES
    if (this.saysOpen(known) && (freeSectorAt === undefined || free >= sectors)) return
    const header = this.edit(slice, STAGE.headers)
    header[uncleanAt] = 1
    if (freeSectorAt !== undefined) header.writeUInt32LE(Math.max(free, sectors), freeSectorAt)
  }

  private requireReachable(end: number): void {
    requireReach(this.parts.store, end, this.parts.spanBytes)
  }

  private directorySlice(directoryAt: number, index: number): Slice {
    return sliceOf(directoryAt, this.directoryBytes, index * ENTRY_BYTES)
  }

  private tableSlice(place: number, index: number): Slice {
    return sliceOf(place, this.tableBytes, index * ENTRY_BYTES)
  }

  private read({ at, length }: Slice): Buffer {
    return this.parts.readTable(at, length)
  }

  private edit(slice: Slice, stage: number): Buffer {
    const { pool, base } = this.parts
    return pool.edit(base + slice.at, stage, () => this.read(slice).subarray(0, slice.length))
  }
}

function sliceOf(at: number, bytes: number, byte: number): Slice {
  const start = Math.floor(byte / SLICE_BYTES) * SLICE_BYTES
  return { at: at + start, length: Math.min(SLICE_BYTES, bytes - start) }
}
