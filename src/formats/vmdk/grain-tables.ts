/**
 * Two levels of tables with 4096 entries: a grain directory, and the grain tables that it names. COWD and seSparse extents
 * have them, with different meanings of entries.
 *
 * A lookup reads one slice of the directory and the slices of one grain table, and joins neighbours of one kind into one
 * extent. Grains may begin at any sector. So this code decides, grain by grain, whether the file ends within one; the
 * engine's rounding to units could not.
 */
import { ImageError } from '../../errors.js'
import type { Extent, FormatDriver } from '../driver.js'
import type { ExtentParts } from './parts.js'
import { SECTOR_BYTES } from '../../sector.js'
import { SLICE_BYTES } from '../../cache/table-pool.js'
import { damageOf } from '../damage.js'

/** The number of entries of a grain table. */
export const TABLE_ENTRIES = 4096

/** A range of bytes of the file. */
export interface Region {
  readonly offset: number
  readonly bytes: number
}

export interface GrainShape {
  readonly capacityBytes: number
  readonly grainBytes: number
  /** The size of an entry, in the directory and in the tables. */
  readonly entryBytes: 4 | 8
  /** The directory, in whole sectors. */
  readonly directory: Region
}

/**
 * The meaning of a grain table's entry: the grain's place in the file, or one of these values, which are not places. Numbers,
 * because a request may have thousands of entries. Neighbours of one kind are equal, or one grain apart.
 */
export const PARENT = -1
export const ZERO = -2
export const DAMAGED = -3

export abstract class GrainTables implements FormatDriver {
  readonly sizeBytes: number
  readonly unitBytes: number
  /** How many bytes of the disk one grain table maps. */
  private readonly coverage: number
  private readonly entryBytes: number
  private readonly tableBytes: number
  private readonly directory: Region
  /** The size of the file, for one lookup. */
  protected fileBytes = 0

  constructor(
    protected readonly parts: ExtentParts,
    shape: GrainShape,
  ) {
    this.sizeBytes = shape.capacityBytes
    this.unitBytes = shape.grainBytes
    this.entryBytes = shape.entryBytes
    this.tableBytes = TABLE_ENTRIES * shape.entryBytes
    this.coverage = TABLE_ENTRIES * shape.grainBytes
    this.directory = shape.directory
  }

  /**
   * Returns the place in the file of the grain table that the directory entry at `at` of `slice` names; 0 if there is none.
   * `index` is for messages. Throws ImageError.
   */
  protected abstract tableOf(slice: Buffer, at: number, index: number): number

  /** Decodes the entry at `at` of `slice`, which belongs to the grain table at `table`. */
  protected abstract entryOf(slice: Buffer, at: number, table: number): number

  /** Returns why that entry is DAMAGED. */
  protected abstract problemOf(slice: Buffer, at: number, table: number): string

  /**
   * Reports whether the file has lost its end. If not, it may end within its last grain, whose rest reads as zeros.
   */
  protected abstract isCutOff(): boolean

  lookup(offset: number, length: number): Extent {
    this.fileBytes = this.parts.store.sizeBytes
    const index = Math.floor(offset / this.coverage)
    const inTable = offset - index * this.coverage
    const directory = this.directorySlice(index)
    const at = (index * this.entryBytes) % SLICE_BYTES
    const table = this.tableOf(directory, at, index)
    if (table !== 0) return this.grains(table, inTable, length)
    const unallocated =
      this.unallocatedTables(directory, at, index, inTable + length) * this.coverage
    return { kind: 'parent', length: Math.min(length, unallocated - inTable) }
  }

  private directorySlice(index: number): Buffer {
    const inDirectory = Math.floor((index * this.entryBytes) / SLICE_BYTES) * SLICE_BYTES
    const length = Math.min(SLICE_BYTES, this.directory.bytes - inDirectory)
    return this.parts.readTable(this.directory.offset + inDirectory, length)
  }

  /** Returns how many entries of the slice from `at` on name no table, within `bytes` bytes of the disk. */
  private unallocatedTables(slice: Buffer, at: number, index: number, bytes: number): number {
    const listed = Math.floor((slice.length - at) / this.entryBytes)
    const wanted = Math.min(listed, Math.ceil(bytes / this.coverage))
    let count = 1
    while (
      count < wanted &&
      this.isUnallocated(slice, at + count * this.entryBytes, index + count)
    ) {
      count++
    }
    return count
  }

  /** Reports whether the entry names no table. False also for a damaged entry: the read that gets there reports it. */
  private isUnallocated(slice: Buffer, at: number, index: number): boolean {
    try {
      return this.tableOf(slice, at, index) === 0
    } catch (error) {
      if (error instanceof ImageError) return false
      throw error
    }
  }

  /** Returns the run of grains that begins at byte `inTable` of the range that the grain table at `table` maps. */
  private grains(table: number, inTable: number, length: number): Extent {
    const { unitBytes, entryBytes } = this
    const inGrain = inTable % unitBytes
    const from = Math.floor(inTable / unitBytes) * entryBytes
    const slice = this.tableSlice(table, from)
    const first = this.entryOf(slice, from % SLICE_BYTES, table)
    if (first === DAMAGED) {
      throw this.damage(this.problemOf(slice, from % SLICE_BYTES, table))
    }
    const wanted = from + Math.ceil((inGrain + length) / unitBytes) * entryBytes
    const to = this.runEnd(slice, table, from, Math.min(wanted, this.tableBytes), first)
    const found = Math.min(length, ((to - from) / entryBytes) * unitBytes - inGrain)
    if (first >= 0) return this.data(first + inGrain, found)
    return { kind: first === ZERO ? 'zero' : 'parent', length: found }
  }

  /**
   * Returns where in the table, up to `to`, the run ends that begins with `first` at `from`. Damage further on also ends it: the
   * read that gets there reports it, after the good bytes are delivered.
   */
  private runEnd(slice: Buffer, table: number, from: number, to: number, first: number): number {
    const { entryBytes } = this
    const step = first >= 0 ? this.unitBytes : 0
    let expected = first
    for (let at = from + entryBytes; at < to; at += entryBytes) {
      const inSlice = at % SLICE_BYTES
      if (inSlice === 0) {
        const next = this.tableSliceUnlessDamaged(table, at)
        if (next === undefined) return at
        slice = next
      }
      expected += step
      if (this.entryOf(slice, inSlice, table) !== expected) return at
    }
    return to
  }

  private tableSliceUnlessDamaged(table: number, at: number): Buffer | undefined {
    try {
      return this.parts.readTable(table + at, SLICE_BYTES)
    } catch (error) {
      if (error instanceof ImageError) return undefined
      throw error
    }
  }

  /** Returns the slice of the grain table at `table` that contains byte `at` of the table. */
  private tableSlice(table: number, at: number): Buffer {
    const start = table + at - (at % SLICE_BYTES)
    return this.parts.readTable(start, SLICE_BYTES)
  }

  private data(at: number, length: number): Extent {
    const inFile = this.fileBytes - at
    if (inFile <= 0) {
      if (!this.isCutOff()) return { kind: 'zero', length }
      throw this.damage(`the grain's bytes at ${at} lie beyond the end of the file`)
    }
    return { kind: 'data', length: Math.min(length, inFile), store: this.parts.store, at }
  }

  protected damage(message: string): ImageError {
    return damageOf(this.parts.store.path, message)
  }
}

/** Returns the first two of `regions`, in the order of the file, that overlap. */
export function overlap<T extends Region>(regions: readonly T[]): [T, T] | undefined {
  const sorted = regions.filter(({ bytes }) => bytes > 0).sort((a, b) => a.offset - b.offset)
  for (let i = 1; i < sorted.length; i++) {
    const [before, after] = [sorted[i - 1] as T, sorted[i] as T]
    if (after.offset < before.offset + before.bytes) return [before, after]
  }
  return undefined
}

export const wholeSectors = (bytes: number): number =>
  Math.ceil(bytes / SECTOR_BYTES) * SECTOR_BYTES
