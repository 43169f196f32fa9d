/**
 * Walks the tables of a seSparse extent (QEMU block/vmdk.c, as in sesparse.ts). Tables and grains have separate regions, so
 * only tables can overlap tables, and grains can overlap grains.
 */
import { ImageError } from '../../../errors.js'
import type { Store } from '../../../io/store.js'
import type { GrainTotals } from './grain-sink.js'
import { TABLE_ENTRIES } from '../grain-tables.js'
import { grainsEnd, type SesparseHeader } from '../sesparse.js'
import {
  GRAIN,
  grainIndex,
  grainKind,
  hexEntry,
  SESPARSE_ENTRY_BYTES,
  TABLE_IS_HERE,
} from '../sesparse-entries.js'
import { Bits } from '../../check/bits.js'
import { SectorMap } from '../../check/sector-map.js'

const TABLE_BYTES = TABLE_ENTRIES * SESPARSE_ENTRY_BYTES
/** The most windows of the map of grains; each needs a walk over all tables. */
const MAX_WINDOWS = 128
/** How many entries of the directory are read at once. */
const SLICE_ENTRIES = 4096

/** Places are bytes of the file. */
export interface SesparseSink {
  /** Reports damage that costs data. */
  corruption(at: number, message: () => string): void
  /** Called once, at the end. */
  grains(totals: GrainTotals): void
}

export interface SesparseOptions {
  /** The memory of a map, a multiple of 4. */
  readonly windowBytes?: number
  /** Called with the part that is done, 0 to 1. */
  readonly progress?: (part: number) => void
}

/** Inspects the extent. Throws SystemError; ImageError if the file becomes shorter meanwhile. */
export function inspectSesparse(
  store: Store,
  header: SesparseHeader,
  sink: SesparseSink,
  options: SesparseOptions = {},
): void {
  new SesparseInspection(store, header, sink, options).run()
}

/** A word buffer: the low half of each entry, then its high one. */
class Words {
  readonly words: Uint32Array
  private readonly bytes: Buffer

  constructor(entries: number) {
    this.bytes = Buffer.from(new ArrayBuffer(entries * SESPARSE_ENTRY_BYTES))
    this.words = new Uint32Array(this.bytes.buffer)
  }

  read(store: Store, at: number, entries: number): void {
    const length = entries * SESPARSE_ENTRY_BYTES
    if (store.read(this.bytes, 0, length, at) === length) return
    throw new ImageError('CORRUPT', 'the file has become shorter since it was opened', {
      path: store.path,
    })
  }
}

class SesparseInspection {
  private readonly directoryEntries: number
  private readonly tableCount: number
  /** The number of grains that are at least partly in the file, and of grains that fit before the next structure. */
  private readonly fileGrains: number
  private readonly maxGrains: number
  private readonly slice = new Words(SLICE_ENTRIES)
  private readonly table = new Words(TABLE_ENTRIES)
  /** The damaged entries of the directory. */
  private readonly skipped: Bits
  private allocated = 0
  private fragmented = 0
  private last = -1
  private highest = -1
  /** The windows that are not empty. */
  private readonly tableWindows = new Set<number>()
  private readonly grainWindows = new Set<number>()

  constructor(
    private readonly store: Store,
    private readonly header: SesparseHeader,
    private readonly sink: SesparseSink,
    private readonly options: SesparseOptions,
  ) {
    const { capacityBytes, grainBytes, regions } = header
    this.directoryEntries = Math.ceil(capacityBytes / (grainBytes * TABLE_ENTRIES))
    this.tableCount = Math.floor(regions.tables.bytes / TABLE_BYTES)
    const { offset } = regions.grains
    const inFile = Math.max(0, store.sizeBytes - offset)
    this.fileGrains = Math.ceil(inFile / grainBytes)
    this.maxGrains = Math.floor((grainsEnd(header) - offset) / grainBytes)
    this.skipped = new Bits(this.directoryEntries)
  }

  run(): void {
    const { progress, windowBytes } = this.options
    const tables = new SectorMap(Math.min(this.tableCount, 2 ** 32), windowBytes)
    eachWindow(tables, this.tableWindows, () => this.takeTables(tables))
    const grains = new SectorMap(Math.min(this.fileGrains, this.maxGrains), windowBytes)
    eachWindow(grains, this.grainWindows, (done, windows) => {
      this.takeGrains(grains, part => progress?.((done + part) / windows))
      if (this.grainWindows.size > MAX_WINDOWS) throw this.beyondWalking()
    })
    const { allocated, fragmented, highest, header } = this
    const { offset, bytes } = header.regions.tables
    const endBytes =
      highest < 0
        ? offset + bytes
        : header.regions.grains.offset + (highest + 1) * header.grainBytes
    this.sink.grains({ allocated, fragmented, endBytes })
  }

  private beyondWalking(): ImageError {
    const what = `its tables name grains in more than ${MAX_WINDOWS} parts of a file of ${this.store.sizeBytes} bytes`
    return new ImageError('UNSUPPORTED', `${what}, which is too much to go over`, {
      path: this.store.path,
      hint: 'it can be read: mount it with -o ro',
    })
  }

  /** Calls `visit` for each entry of the directory that is not 0. */
  private eachEntry(visit: (index: number, low: number, high: number) => void): void {
    const { offset } = this.header.regions.directory
    for (let first = 0; first < this.directoryEntries; first += SLICE_ENTRIES) {
      const next = this.store.nextData(offset + first * SESPARSE_ENTRY_BYTES)
      if (next < 0) return
      first = Math.max(first, Math.floor((next - offset) / SESPARSE_ENTRY_BYTES))
      if (first >= this.directoryEntries) return
      const count = Math.min(SLICE_ENTRIES, this.directoryEntries - first)
      this.slice.read(this.store, offset + first * SESPARSE_ENTRY_BYTES, count)
      for (let i = 0; i < count; i++) {
        const low = this.slice.words[2 * i] as number
        const high = this.slice.words[2 * i + 1] as number
        if (low !== 0 || high !== 0) visit(first + i, low, high)
      }
    }
  }

  private takeTables(map: SectorMap): void {
    this.eachEntry((index, low, high) => {
      if (this.skipped.has(index)) return
      if (low < this.tableCount) this.tableWindows.add(map.windowOf(low))
      const problem =
        high !== TABLE_IS_HERE
          ? `is 0x${hexEntry(high, low)}, which names no grain table`
          : low >= this.tableCount
            ? `names the grain table ${low} of ${this.tableCount}`
            : map.isTaken(low, low + 1)
              ? `names the grain table ${low}, as another one does`
              : undefined
      if (problem === undefined) map.take(low, low + 1)
      else {
        this.skipped.set(index)
        const at = this.header.regions.directory.offset + index * SESPARSE_ENTRY_BYTES
        this.sink.corruption(at, () => `the directory entry ${index} ${problem}`)
      }
    })
  }

  private takeGrains(map: SectorMap, progress: (part: number) => void): void {
    this.eachEntry((index, low) => {
      if (index % 64 === 0) progress(index / this.directoryEntries)
      if (this.skipped.has(index)) return
      const at = this.header.regions.tables.offset + low * TABLE_BYTES
      const next = this.store.nextData(at)
      if (next < 0 || next >= at + TABLE_BYTES) return
      this.table.read(this.store, at, TABLE_ENTRIES)
      for (let i = 0; i < TABLE_ENTRIES; i++) this.takeGrain(map, at, i)
    })
    progress(1)
  }

  private takeGrain(map: SectorMap, table: number, i: number): void {
    const low = this.table.words[2 * i] as number
    const high = this.table.words[2 * i + 1] as number
    const isFirst = map.first === 0
    const kind = grainKind(high)
    if (kind === GRAIN.unmapped || kind === GRAIN.zero || (high === 0 && low === 0)) return
    const blame = (what: string) =>
      this.sink.corruption(
        table + i * SESPARSE_ENTRY_BYTES,
        () => `the grain table entry 0x${hexEntry(high, low)} ${what}`,
      )
    if (kind !== GRAIN.data) {
      if (isFirst) blame('means nothing')
      return
    }
    const index = grainIndex(high, low)
    if (isFirst) {
      this.count(index)
      if (index < Math.min(this.maxGrains, this.fileGrains)) {
        this.grainWindows.add(map.windowOf(index))
      }
      if (index >= this.maxGrains) blame('names a grain that is not among the grains')
      else if (index >= this.fileGrains) blame('names a grain beyond the end of the file')
    }
    if (index < map.first || index >= map.end) return
    if (map.isTaken(index, index + 1)) blame('names a grain that another one names, too')
    map.take(index, index + 1)
  }

  private count(index: number): void {
    this.allocated++
    if (this.last >= 0 && index !== this.last + 1) this.fragmented++
    this.last = index
    if (index < this.fileGrains) this.highest = Math.max(this.highest, index)
  }
}

/**
 * Goes over the first window of the map, and then over the windows in `wanted`.
 * @param act gets the number of windows that are done, and of all windows
 */
function eachWindow(
  map: SectorMap,
  wanted: ReadonlySet<number>,
  act: (done: number, windows: number) => void,
): void {
  map.begin(0)
  act(0, 1)
  const others = [...wanted].filter(window => window > 0).sort((a, b) => a - b)
  others.forEach((window, i) => {
    map.begin(window)
    act(i + 1, others.length + 1)
  })
}
