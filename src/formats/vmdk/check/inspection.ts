/**
 * Walks the tables of an extent.
 *
 * A map of sectors finds overlaps. The header, the descriptor and the directories are entered first, then the tables, then the
 * grains in the order of the disk; of two that overlap, the later one is reported. The map covers a window of the file, so that
 * its size is bounded. If there are several windows, tables are checked in a first pass over all of them, and their grains in a
 * second one. A damaged table is not walked. Tables that are walked do not overlap, so there are no more of them than the file
 * has room for.
 */
import type { Store } from '../../../io/store.js'
import type { GrainSink, InspectOptions } from './grain-sink.js'
import type { Region } from '../grain-tables.js'
import { type GrainLayout, MAX_FILE_BYTES, tableBytesOf } from '../layout.js'
import { isInFile, SPARSE_FIELD_AT } from '../sparse-header.js'
import { Directory } from './directory.js'
import { FreeRuns } from '../../check/free-runs.js'
import { compareTables } from './redundancy.js'
import { SectorMap, WINDOW_BYTES } from '../../check/sector-map.js'
import type { TableReader } from './table-reader.js'
import { SECTOR_BYTES } from '../../../sector.js'
import { ENTRY_BYTES, noGrainMax, UNALLOCATED } from '../entries.js'

interface NamedRegion extends Region {
  readonly name: string
}

export class Inspection {
  protected readonly grainSectors: number
  private readonly tableSectors: number
  /** The sectors of the file; the last one may be cut off. */
  readonly fileSectors: number
  /** The whole sectors of the file. */
  private readonly wholeFileSectors: number
  /** The highest entry that has a meaning without naming a grain. */
  readonly noGrainMax: number
  /** The entries of the directory that map a part of the disk. */
  private readonly directoryEntries: number
  private readonly directoryBytes: number
  protected readonly map: SectorMap
  private readonly free: FreeRuns
  /** The next free sector; Infinity if the header does not say. */
  private readonly freeSector: number

  private allocated = 0
  private fragmented = 0
  /** The sector after the last structure in use. */
  private usedEnd = 0
  /** The sector after the grain that was counted last. */
  private lastEnd = -1

  /** Whether this is the first walk over the grains. */
  protected isFirst = true
  /** A run of grains: its first sector and the next one (-1 if there is no run), and its first grain. */
  protected runStart = -1
  private runEnd = -1
  protected runGrain = 0
  /** The windows that contain tables and grains; the others need no walk. */
  private readonly tableWindows = new Set<number>([0])
  private readonly grainWindows = new Set<number>([0])
  /** The first grain of the batch of tables, and its part of the directory. */
  private batchGrain = 0
  private batch: Uint32Array = new Uint32Array(0)
  /**
   * The grain that reaches into this window from the one before, and the one that reaches out of it, that were not reported yet.
   * There is at most one of each, because all such grains overlap in the last sector of the window.
   */
  private entering = -1
  private leaving = -1

  constructor(
    protected readonly store: Store,
    readonly layout: GrainLayout,
    readonly sink: GrainSink,
    private readonly options: InspectOptions,
  ) {
    const { grainBytes, tableEntries, capacityBytes } = layout
    this.grainSectors = grainBytes / SECTOR_BYTES
    this.tableSectors = tableBytesOf(layout) / SECTOR_BYTES
    this.fileSectors = Math.ceil(store.sizeBytes / SECTOR_BYTES)
    this.wholeFileSectors = Math.floor(store.sizeBytes / SECTOR_BYTES)
    this.noGrainMax = noGrainMax(layout)
    this.directoryEntries = Math.min(
      layout.directoryEntries,
      Math.ceil(capacityBytes / (grainBytes * tableEntries)),
    )
    this.directoryBytes = sectorsOf(layout.directoryEntries * ENTRY_BYTES) * SECTOR_BYTES
    const { freeSectorAt } = layout
    this.freeSector =
      freeSectorAt === undefined ? Number.POSITIVE_INFINITY : headerField(store, freeSectorAt, 4)
    const bounds = {
      from: freeSectorAt === undefined ? headerField(store, SPARSE_FIELD_AT.overhead, 8) : 0,
      to: this.freeSector,
    }
    this.free = new FreeRuns(bounds, this.grainSectors, (from, to) => {
      const at = from * SECTOR_BYTES
      sink.unused?.(at, Math.min(to * SECTOR_BYTES, store.sizeBytes) - at)
    })
    // No entry names anything past it.
    const reach = MAX_FILE_BYTES / SECTOR_BYTES + Math.max(this.grainSectors, this.tableSectors)
    this.map = new SectorMap(Math.min(this.fileSectors, reach), options.windowBytes ?? WINDOW_BYTES)
  }

  run(): void {
    const regions = this.regions()
    const [first, redundant] = this.directories(regions)
    if (!first) return
    const { windows } = this.map
    for (let window = 0; window < windows; window++) {
      this.map.begin(window)
      this.takeMetadata(regions, first, redundant, true)
    }
    for (let window = 0; window < windows; window++) {
      this.isFirst = window === 0
      if (windows > 1) {
        this.map.begin(window)
        this.takeMetadata(regions, first, redundant, false)
      }
      this.entering = this.leaving
      this.leaving = -1
      if (this.grainWindows.has(window)) {
        this.walk(first, redundant, part => this.options.progress?.((window + part) / windows))
      }
      if (this.sink.unused) this.map.eachFree((from, to) => this.free.add(from, to))
    }
    // Structures so far past the end are only compared as regions.
    const { end } = this.map
    if (regions.every(({ offset }) => offset < end * SECTOR_BYTES))
      this.free.add(end, this.fileSectors)
    this.free.end()
    this.inspectFreeSector()
    const { allocated, fragmented, usedEnd } = this
    this.sink.grains?.({ allocated, fragmented, endBytes: usedEnd * SECTOR_BYTES })
  }

  private regions(): NamedRegion[] {
    const { reserved, directoryAt, redundantDirectoryAt } = this.layout
    const regions = reserved.map((region, i) => ({
      name: i === 0 ? 'the header' : 'the descriptor',
      ...region,
    }))
    const bytes = this.directoryBytes
    regions.push({ name: 'the grain directory', offset: directoryAt, bytes })
    if (redundantDirectoryAt !== undefined && redundantDirectoryAt !== directoryAt) {
      const name = 'the redundant grain directory'
      regions.push({ name, offset: redundantDirectoryAt, bytes })
    }
    this.inspectRegions(regions)
    return regions
  }

  private inspectRegions(regions: readonly NamedRegion[]): void {
    const sorted = regions.filter(({ bytes }) => bytes > 0).sort((a, b) => a.offset - b.offset)
    sorted.forEach(({ name, offset, bytes }, i) => {
      const { sizeBytes } = this.store
      if (offset + bytes > sizeBytes) {
        this.sink.corruption(offset, () => `${name} lies beyond the end of the file`, false)
      }
      const before = sorted[i - 1]
      if (before && offset < before.offset + before.bytes) {
        this.sink.corruption(offset, () => `${name} lies over ${before.name}`, true)
      }
      this.usedEnd = Math.max(this.usedEnd, sectorsOf(offset + bytes))
    })
  }

  /** The first and the redundant directory, as far as they can be read. */
  private directories(regions: readonly NamedRegion[]): (Directory | undefined)[] {
    return regions.slice(this.layout.reserved.length).map(({ name, offset, bytes }) => {
      if (!isInFile(offset, bytes, this.store.sizeBytes)) return undefined
      const tableBytes = this.tableSectors * SECTOR_BYTES
      return new Directory(this.store, name, offset, this.directoryEntries, tableBytes)
    })
  }

  private takeMetadata(
    regions: readonly NamedRegion[],
    first: Directory,
    redundant: Directory | undefined,
    isReported: boolean,
  ): void {
    for (const { offset, bytes } of regions) {
      this.map.take(offset / SECTOR_BYTES, sectorsOf(offset + bytes))
    }
    if (!this.tableWindows.has(this.map.windowOf(this.map.first))) return
    this.takeTables(first, undefined, isReported)
    if (redundant) this.takeTables(redundant, first, isReported)
  }

  /** @param shared the other directory, whose entries may name the same tables */
  private takeTables(
    directory: Directory,
    shared: Directory | undefined,
    isReported: boolean,
  ): void {
    for (let at = 0; ; ) {
      at = directory.skipHole(at)
      if (at >= this.directoryEntries) return
      const count = directory.readEntries(at)
      shared?.readEntries(at)
      for (let i = 0; i < count; i++) {
        const sector = directory.entries[i] as number
        if (sector === UNALLOCATED) continue
        if (sector === shared?.entries[i]) directory.passOver(i)
        else this.takeTable(directory, i, sector, isReported)
      }
      at += count
    }
  }

  private takeTable(directory: Directory, i: number, sector: number, isReported: boolean): void {
    const at = sector * SECTOR_BYTES
    const end = sector + this.tableSectors
    if (!isInFile(at, end * SECTOR_BYTES - at, this.store.sizeBytes)) {
      if (!isReported || directory.isSkipped(i)) return
      directory.passOver(i)
      this.sink.corruption(
        directory.entryAt(i),
        () => `${directory.name} names a table at ${at}, beyond the end of the file`,
        false,
      )
      return
    }
    if (isReported && !directory.isSkipped(i) && this.map.isTaken(sector, end)) {
      directory.passOver(i)
      this.sink.corruption(
        directory.entryAt(i),
        () => `${directory.name} names a table at ${at}, where another one or a directory is`,
        true,
      )
    }
    this.map.take(sector, end)
    this.noteWindows(this.tableWindows, sector, end)
    this.usedEnd = Math.max(this.usedEnd, end)
  }

  private walk(
    first: Directory,
    redundant: Directory | undefined,
    progress: (part: number) => void,
  ): void {
    for (let at = 0; ; ) {
      at = Math.min(first.skipHole(at), redundant?.skipHole(at) ?? Number.POSITIVE_INFINITY)
      if (at >= this.directoryEntries) return
      const count = first.readEntries(at)
      const hasEntries = first.readTables(count)
      this.batchGrain = at * this.layout.tableEntries
      this.batch = first.wanted
      if (hasEntries) this.walkTables(first.tables, count)
      if (this.isFirst && redundant) {
        redundant.readEntries(at)
        if (redundant.readTables(count) || hasEntries) {
          compareTables(first, redundant, count, this)
        }
      }
      at += count
      progress(at / this.directoryEntries)
    }
  }

  private walkTables({ words, stride }: TableReader, count: number): void {
    const { grainSectors, noGrainMax } = this
    const { tableEntries } = this.layout
    for (let table = 0; table < count; table++) {
      const start = table * stride
      const grain = this.batchGrain + table * tableEntries
      let next = this.runEnd
      for (let i = 0; i < tableEntries; i++) {
        const sector = words[start + i] as number
        if (sector === next) next += grainSectors
        else {
          if (next >= 0) this.endRun(next)
          next = -1
          if (sector <= noGrainMax) continue
          this.runStart = sector
          this.runGrain = grain + i
          next = sector + grainSectors
        }
      }
      this.runEnd = next
    }
    if (this.runEnd >= 0) this.endRun(this.runEnd)
    this.runEnd = -1
  }

  /** Enters the grains of the run, up to the sector `end`. */
  protected endRun(end: number): void {
    const { map, runStart: start, wholeFileSectors, grainSectors } = this
    if (this.isFirst) this.count(start, end, (end - start) / grainSectors)
    const isCutOff = end > wholeFileSectors
    if (!(isCutOff && this.isFirst) && (end <= map.first || start >= map.end)) return
    const isInside = start >= map.first && end <= map.end
    if (!isCutOff && isInside && !map.isTaken(start, end)) {
      map.take(start, end)
      return
    }
    for (let at = start, grain = this.runGrain; at < end; at += grainSectors, grain++) {
      this.takeGrain(at, grain)
    }
  }

  /** Counts grains that follow one another, from sector `start` up to `end`. */
  protected count(start: number, end: number, grains: number): void {
    this.allocated += grains
    this.noteWindows(this.grainWindows, start, end)
    if (this.lastEnd >= 0 && start !== this.lastEnd) this.fragmented++
    this.lastEnd = end
    if (end <= this.fileSectors) this.usedEnd = Math.max(this.usedEnd, end)
  }

  private noteWindows(windows: Set<number>, start: number, end: number): void {
    const { map } = this
    if (map.windows <= 1) return
    const last = Math.min(map.windows - 1, map.windowOf(end - 1))
    for (let window = map.windowOf(start); window <= last; window++) windows.add(window)
  }

  private takeGrain(sector: number, grain: number): void {
    const end = sector + this.grainSectors
    const isMissing = this.isMissing(sector, grain)
    if (this.isFirst) {
      const isBehind = sector >= this.fileSectors
      if (!isBehind) this.usedEnd = Math.max(this.usedEnd, end)
      const where = isBehind ? 'beyond the end of it' : 'which the end of it cuts off'
      if (isMissing) this.blame(grain, sector, () => where, false)
    }
    this.claim(sector, end, grain, isMissing)
  }

  /** @param isKnown whether the damage of the grain was already reported */
  protected claim(sector: number, end: number, grain: number, isKnown: boolean): void {
    const { map } = this
    if (end <= map.first || sector >= map.end) return
    const isTaken = map.isTaken(sector, end)
    map.take(sector, end)
    if (isKnown || (sector < map.first && grain !== this.entering)) return
    if (isTaken) this.blame(grain, sector, () => 'where another one or a table is', true)
    else if (end > map.end) this.leaving = grain
  }

  /** Reports whether the part of the grain past the end of the file holds a part of the disk. */
  private isMissing(sector: number, grain: number): boolean {
    if (sector >= this.fileSectors) return true
    const { grainBytes, capacityBytes, freeSectorAt } = this.layout
    // Its writer may have left a COWD file that ends before its last grain does, between two sectors.
    const isPartial = this.store.sizeBytes % SECTOR_BYTES !== 0
    if (freeSectorAt !== undefined && !isPartial && this.freeSector <= this.fileSectors)
      return false
    const onDisk = Math.min(grainBytes, capacityBytes - grain * grainBytes)
    return sector + sectorsOf(onDisk) > this.wholeFileSectors
  }

  /**
   * Reports that the entry of a grain of this batch of tables is damaged.
   * @param where describes what is wrong with the place that it names
   */
  protected blame(grain: number, sector: number, where: () => string, isOverlap: boolean): void {
    const { tableEntries, grainBytes } = this.layout
    const inBatch = grain - this.batchGrain
    const table = (this.batch[Math.floor(inBatch / tableEntries)] as number) * SECTOR_BYTES
    const message = () =>
      `the entry of the grain at ${grain * grainBytes} of the extent's disk names a grain at ${sector * SECTOR_BYTES} of the file, ${where()}`
    const at = table + (inBatch % tableEntries) * ENTRY_BYTES
    this.sink.corruption(at, message, isOverlap)
  }

  private inspectFreeSector(): void {
    const { freeSectorAt } = this.layout
    if (freeSectorAt === undefined || this.usedEnd <= this.freeSector) return
    this.sink.corruption(
      freeSectorAt,
      () =>
        `the next grain is to go to sector ${this.freeSector}, and data lie up to ${this.usedEnd}: it would be written over them`,
      false,
    )
  }
}

/** Returns the field at `at` of the header; 64 bits may be rounded. */
function headerField(store: Store, at: number, bytes: 4 | 8): number {
  const field = Buffer.alloc(8)
  store.read(field, 0, bytes, at)
  return Number(field.readBigUInt64LE())
}

export const sectorsOf = (bytes: number): number => Math.ceil(bytes / SECTOR_BYTES)
