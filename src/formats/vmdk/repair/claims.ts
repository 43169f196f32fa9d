/** Finds out whether ranges of an extent's file belong to something else. */
import type { Store } from '../../../io/store.js'
import { Directory } from '../check/directory.js'
import { type GrainLayout, tableBytesOf } from '../layout.js'
import { isInFile } from '../sparse-header.js'
import { SECTOR_BYTES } from '../../../sector.js'
import { ENTRY_BYTES, noGrainMax } from '../entries.js'

/** The owner of a structure that is neither a grain nor a searched table. */
const METADATA = -1

/** A range of sectors that one owner claims, and whether others claim it, too. */
export class Range {
  /** Whether the first tables, or metadata, name it for another owner. */
  isTaken = false
  /** Whether only a redundant table names it for another owner. */
  isTakenByRedundant = false

  /** @param owner the number of a grain; below -1 for other structures */
  constructor(
    readonly owner: number,
    readonly start: number,
    readonly sectors: number,
  ) {}

  get isFree(): boolean {
    return !this.isTaken && !this.isTakenByRedundant
  }
}

/**
 * Marks the ranges that metadata or other grains overlap. Reads all tables of both directories. Throws SystemError; ImageError
 * if the file becomes shorter meanwhile.
 */
export function markTaken(store: Store, layout: GrainLayout, ranges: readonly Range[]): void {
  if (ranges.length > 0) new Claims(store, layout, ranges).mark()
}

class Claims {
  private readonly ranges: readonly Range[]
  private readonly longest: number
  private readonly grainSectors: number

  constructor(
    private readonly store: Store,
    private readonly layout: GrainLayout,
    ranges: readonly Range[],
  ) {
    this.ranges = [...ranges].sort((a, b) => a.start - b.start)
    this.longest = this.ranges.reduce((most, { sectors }) => Math.max(most, sectors), 0)
    this.grainSectors = layout.grainBytes / SECTOR_BYTES
  }

  mark(): void {
    const { layout, store } = this
    const { directoryAt, redundantDirectoryAt, directoryEntries, reserved } = layout
    for (const { offset, bytes } of reserved) this.claimBytes(offset, bytes)
    const places = [directoryAt, redundantDirectoryAt ?? directoryAt]
    for (const at of places) this.claimBytes(at, directoryEntries * ENTRY_BYTES)
    const [first, redundant] = places.map(
      at => new Directory(store, '', at, directoryEntries, tableBytesOf(layout)),
    ) as [Directory, Directory]
    for (let at = 0; at < directoryEntries; ) {
      const count = first.readEntries(at)
      redundant.readEntries(at)
      for (const directory of [first, redundant]) this.claimTables(directory, count)
      this.claimGrains(first, count, at, false)
      this.claimGrains(redundant, count, at, true)
      at += count
    }
  }

  private claimTables(directory: Directory, count: number): void {
    const tableBytes = tableBytesOf(this.layout)
    for (let i = 0; i < count; i++) {
      const at = (directory.entries[i] as number) * SECTOR_BYTES
      if (!isInFile(at, tableBytes, this.store.sizeBytes)) directory.passOver(i)
      else this.claimBytes(at, tableBytes)
    }
  }

  private claimGrains(
    directory: Directory,
    count: number,
    index: number,
    isRedundant: boolean,
  ): void {
    if (!directory.readTables(count)) return
    const { tableEntries } = this.layout
    const { words, stride } = directory.tables
    const lowest = noGrainMax(this.layout) + 1
    for (let table = 0; table < count; table++) {
      for (let k = 0; k < tableEntries; k++) {
        const sector = words[table * stride + k] as number
        if (sector < lowest) continue
        this.claim(sector, this.grainSectors, (index + table) * tableEntries + k, isRedundant)
      }
    }
  }

  private claimBytes(at: number, bytes: number): void {
    const start = Math.floor(at / SECTOR_BYTES)
    this.claim(start, Math.ceil((at + bytes) / SECTOR_BYTES) - start, METADATA, false)
  }

  private claim(start: number, sectors: number, owner: number, isRedundant: boolean): void {
    const end = start + sectors
    for (let i = this.firstFrom(start - this.longest); i < this.ranges.length; i++) {
      const range = this.ranges[i] as Range
      if (range.start >= end) return
      if (range.owner === owner || range.start + range.sectors <= start) continue
      if (isRedundant) range.isTakenByRedundant = true
      else range.isTaken = true
    }
  }

  /** Returns the first range that does not begin before `start`. */
  private firstFrom(start: number): number {
    let low = 0
    let high = this.ranges.length
    while (low < high) {
      const middle = Math.floor((low + high) / 2)
      if ((this.ranges[middle] as Range).start < start) low = middle + 1
      else high = middle
    }
    return low
  }
}
