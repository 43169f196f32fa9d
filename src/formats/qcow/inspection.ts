/**
 * Whether the tables of an image make sense: everything lies in the file, and nothing lies over anything
 * else (QEMU block/qcow.c).
 *
 * Maps tell what lies over what. The header, the backing file's name and the L1 table are taken first, then
 * the L2 tables, then the clusters in the order of the disk; what comes later is to blame. A map has a
 * window of the file, so that its size is bounded; tables are judged in a first pass over all windows, and
 * clusters in a second one. A table that is damaged is not walked: tables that are walked lie apart from
 * each other, so there are no more of them than the file has room for.
 */
import type { Store } from '../../io/store.js'
import { FreeRuns } from '../check/free-runs.js'
import { SectorMap, WINDOW_BYTES } from '../check/sector-map.js'
import {
  clusterBytes,
  ENTRY_BYTES,
  HEADER,
  isEncrypted,
  type QcowHeader,
  SECTOR_BYTES,
  tableBytes,
} from './header.js'
import { type EntryVisitor, TableWalk } from './table-walk.js'
import { WindowPlan } from './window-plan.js'

/** Places are bytes of the file. */
export interface TableSink {
  /**
   * Something that costs data, at a place of the file. `isOverlap`: two things lie over each other, so
   * that writing one of them writes the other. Of a compressed cluster that reaches from one window into
   * the next it may be said twice.
   */
  corruption(at: number, message: () => string, isOverlap: boolean): void
  /**
   * The L1 entry at `at` names the end of the file: its table was never written. It reads as nothing, but
   * what somebody appends would lie there.
   */
  unwritten?(at: number, message: () => string): void
  /**
   * `bytes` at `at` that nothing uses, in ascending order; neighbours are one. What has no room for a
   * cluster is left out.
   */
  unused?(at: number, bytes: number): void
  /** Called once, last. */
  totals?(totals: TableTotals): void
}

export interface TableTotals {
  /** Clusters of the disk that have a place in the file. */
  readonly allocated: number
  /** Of those, the ones that do not follow in the file the cluster before; compressed ones never do. */
  readonly fragmented: number
  readonly compressed: number
  /**
   * Where in the file the last thing that is used ends; behind the file's end where that cuts off a
   * cluster, or where a table was never written.
   */
  readonly endBytes: number
}

export interface InspectOptions {
  /** Memory of one map, a multiple of 4; there are two. */
  readonly windowBytes?: number
  /** Told how much is done, 0 to 1. */
  readonly progress?: (part: number) => void
}

/**
 * Looks at all tables and entries. Throws SystemError; ImageError where so much of the file is in use, or
 * said to be, that the maps would go over it for hours. What the sink throws passes through.
 */
export function inspectTables(
  store: Store,
  header: QcowHeader,
  sink: TableSink,
  options: InspectOptions = {},
): void {
  new Inspection(store, header, sink, options).inspect()
}

interface Region {
  readonly name: string
  readonly offset: number
  readonly end: number
}

const OTHERS = 'where another one, or a table, is'

class Inspection implements EntryVisitor {
  private readonly walk: TableWalk
  private readonly clusterBytes: number
  private readonly tableBytes: number
  private readonly fileBytes: number
  /** Where a program puts what it appends. */
  private readonly appendAt: number
  /** Behind it nothing is taken. */
  private readonly reach: number
  private readonly windowBytes: number
  private readonly regions: readonly Region[]

  /** What a bit of the maps stands for, in bytes. */
  private granule = SECTOR_BYTES
  /** Tables and clusters, which others must not lie over. */
  private own: SectorMap
  /** These, and all that may share a sector with its neighbours. */
  private used: SectorMap

  private allocated = 0
  private fragmented = 0
  private compressed = 0
  private endBytes = 0
  /** Where the cluster that was counted last ends. */
  private lastEnd = -1
  private hasUnwritten = false

  /** Whether this is the first time that the clusters are walked. */
  private isFirst = true
  /**
   * Of the clusters that reach into this window from the one before, and of those that reach out of it,
   * the one that nothing was said of yet. There is one at most: they all lie over the last sector before.
   */
  private entering = -1
  private leaving = -1

  constructor(
    private readonly store: Store,
    private readonly header: QcowHeader,
    private readonly sink: TableSink,
    private readonly options: InspectOptions,
  ) {
    this.walk = new TableWalk(store, header)
    this.clusterBytes = clusterBytes(header)
    this.tableBytes = tableBytes(header)
    this.fileBytes = store.sizeBytes
    this.appendAt = Math.ceil(this.fileBytes / this.clusterBytes) * this.clusterBytes
    this.reach = this.appendAt + Math.max(this.clusterBytes, this.tableBytes)
    this.windowBytes = options.windowBytes ?? WINDOW_BYTES
    this.regions = regionsOf(header)
    this.own = this.map()
    this.used = this.map()
  }

  inspect(): void {
    this.judgeRegions()
    const plan = new WindowPlan(this.windowBytes, this.reach, this.store.path)
    for (const { offset, end } of this.regions) plan.add(offset, end)
    this.walk.eachTable((_, table) => plan.add(table, table + this.tableBytes))
    for (const window of plan.windows(SECTOR_BYTES)) {
      this.begin(window)
      this.takeTables(true)
    }
    if (!plan.isOne) this.survey(plan)
    this.walkWindows(plan.windows(this.granule))
    const { allocated, fragmented, compressed, endBytes } = this
    this.sink.totals?.({ allocated, fragmented, compressed, endBytes })
  }

  run(host: number, clusters: number, entryAt: number, cluster: number): void {
    if (this.isFirst) this.count(host, clusters)
    const { clusterBytes, granule } = this
    const end = host + clusters * clusterBytes
    const [from, to] = [host / granule, end / granule]
    if (host % SECTOR_BYTES === 0 && end <= this.fileBytes) {
      this.reaches(end)
      if (to <= this.own.first || from >= this.own.end) return
      const isInside = from >= this.own.first && to <= this.own.end
      if (isInside && !this.used.isTaken(from, to)) {
        this.take(from, to)
        return
      }
    }
    for (let i = 0; i < clusters; i++) {
      this.takeCluster(host + i * clusterBytes, entryAt + i * ENTRY_BYTES, cluster + i)
    }
  }

  packed(at: number, packedBytes: number, entryAt: number, cluster: number): void {
    const end = at + packedBytes
    if (this.isFirst) {
      this.allocated++
      this.fragmented++
      this.compressed++
    }
    if (packedBytes === 0 || end > this.fileBytes) {
      const where = packedBytes === 0 ? 'which has no bytes' : BEYOND
      this.blameOnce(cluster, at, entryAt, where, false)
      return
    }
    this.reaches(end)
    const from = Math.floor(at / this.granule)
    const to = Math.ceil(end / this.granule)
    // Those may share a sector with what they do not lie over.
    const region = this.regions.find(({ offset, end: last }) => at < last && end > offset)
    if (region) this.blameOnce(cluster, at, entryAt, `where ${region.name} is`, true)
    else if (this.own.isTaken(from, to)) this.blame(cluster, at, entryAt, OTHERS, true)
    this.used.take(from, to)
  }

  private map(): SectorMap {
    return new SectorMap(Math.ceil(this.reach / this.granule), this.windowBytes)
  }

  private judgeRegions(): void {
    const { sink } = this
    const sorted = [...this.regions].sort((a, b) => a.offset - b.offset)
    sorted.forEach(({ name, offset, end }, i) => {
      const before = sorted[i - 1]
      if (before && offset < before.end) {
        sink.corruption(offset, () => `${name} lies over ${before.name}`, true)
      }
      this.reaches(end)
    })
  }

  /**
   * Which windows clusters lie in, and how large the granules may be: as large as clusters and tables
   * are where all are aligned, tables that are damaged too, and where no compressed cluster shares its
   * granule with others.
   */
  private survey(plan: WindowPlan): void {
    const { clusterBytes, tableBytes } = this
    const coarse = Math.min(clusterBytes, tableBytes)
    let isAligned = true
    this.walk.eachTable((_, table) => {
      if (this.hasPlace(table) && table % coarse !== 0) isAligned = false
    })
    this.walk.eachEntry({
      run: (host, clusters) => {
        if (host % coarse !== 0) isAligned = false
        plan.add(host, host + clusters * clusterBytes)
      },
      packed: (at, packedBytes) => {
        isAligned = false
        plan.add(at, at + packedBytes)
      },
    })
    if (!isAligned || coarse === this.granule) return
    this.granule = coarse
    this.own = this.map()
    this.used = this.map()
  }

  private walkWindows(windows: readonly number[]): void {
    const { progress } = this.options
    const least = this.clusterBytes / this.granule
    const bounds = { from: 0, to: Number.POSITIVE_INFINITY }
    const free = new FreeRuns(bounds, least, (from, to) => this.tellUnused(from, to))
    windows.forEach((window, pass) => {
      this.isFirst = pass === 0
      this.begin(window)
      this.takeTables(false)
      this.entering = windows[pass - 1] === window - 1 ? this.leaving : -1
      this.leaving = -1
      this.walk.eachEntry(this, part => progress?.((pass + part) / windows.length))
      if (!this.sink.unused) return
      this.used.eachFree((from, to) => free.add(from, to))
      const next = windows[pass + 1]
      const nothingUpTo =
        next === undefined ? this.reach / this.granule : next * this.windowBytes * 8
      free.add(this.used.end, nothingUpTo)
    })
    free.end()
  }

  /** Begins with a window, of which the regions are taken. */
  private begin(window: number): void {
    this.own.begin(window)
    this.used.begin(window)
    for (const { offset, end } of this.regions) {
      this.used.take(Math.floor(offset / this.granule), Math.ceil(end / this.granule))
    }
  }

  private takeTables(isJudged: boolean): void {
    this.walk.eachTable((index, table) => {
      const isSkipped = this.walk.isSkipped(index)
      if (isJudged && !isSkipped && this.isMisplaced(index, table)) return
      if (!this.hasPlace(table)) return
      const end = table + this.tableBytes
      const [from, to] = [table / this.granule, end / this.granule]
      if (isJudged && !this.walk.isSkipped(index) && this.used.isTaken(from, to)) {
        this.blameTable(index, table, OTHERS, true)
      }
      this.take(from, to)
      this.reaches(end)
    })
  }

  /** Whether a table is where one can be, damaged or not: then nothing else may lie there. */
  private hasPlace(table: number): boolean {
    const end = table + this.tableBytes
    if (table % SECTOR_BYTES !== 0 || end > this.reach) return false
    return end <= this.fileBytes || table === this.appendAt
  }

  /** Whether the table of an L1 entry is not where one can be; then that is said, and it is skipped. */
  private isMisplaced(index: number, table: number): boolean {
    if (table % SECTOR_BYTES !== 0) {
      this.blameTable(index, table, 'which is no sector', false)
      return true
    }
    if (table + this.tableBytes <= this.fileBytes) return false
    if (table === this.appendAt && !this.hasUnwritten) {
      this.hasUnwritten = true
      this.walk.skip(index)
      this.sink.unwritten?.(
        this.walk.l1EntryAt(index),
        () => `the L1 entry ${index} names a table at the end of the file, which was never written`,
      )
      return false
    }
    if (table >= this.fileBytes) this.blameTable(index, table, BEYOND, false)
    else this.blameTable(index, table, CUT_OFF, false)
    return true
  }

  private blameTable(index: number, table: number, where: string, isOverlap: boolean): void {
    this.walk.skip(index)
    const message = () => `the L1 entry ${index} names an L2 table at ${table}, ${where}`
    this.sink.corruption(this.walk.l1EntryAt(index), message, isOverlap)
  }

  private count(host: number, clusters: number): void {
    this.allocated += clusters
    if (this.lastEnd >= 0 && host !== this.lastEnd) this.fragmented++
    this.lastEnd = host + clusters * this.clusterBytes
  }

  private takeCluster(host: number, entryAt: number, cluster: number): void {
    if (host % SECTOR_BYTES !== 0) {
      this.blameOnce(cluster, host, entryAt, 'which is no sector', false)
      return
    }
    if (host >= this.fileBytes) {
      this.blameOnce(cluster, host, entryAt, BEYOND, false)
      return
    }
    const end = host + this.clusterBytes
    this.reaches(end)
    if (this.isLost(end)) this.blameOnce(cluster, host, entryAt, CUT_OFF, false)
    const { own, granule } = this
    const [from, to] = [host / granule, end / granule]
    if (to <= own.first || from >= own.end) return
    const isTaken = this.used.isTaken(from, to)
    this.take(from, to)
    if (from < own.first && cluster !== this.entering) return
    if (isTaken) this.blame(cluster, host, entryAt, OTHERS, true)
    else if (to > own.end) this.leaving = cluster
  }

  /** Of encrypted clusters no more is missing than is decrypted as zeros (io/cipher-store.ts). */
  private isLost(end: number): boolean {
    return end > this.appendAt && isEncrypted(this.header)
  }

  private take(from: number, to: number): void {
    this.own.take(from, to)
    this.used.take(from, to)
  }

  private reaches(end: number): void {
    this.endBytes = Math.max(this.endBytes, end)
  }

  private blameOnce(
    cluster: number,
    at: number,
    entryAt: number,
    where: string,
    isOverlap: boolean,
  ): void {
    if (this.isFirst) this.blame(cluster, at, entryAt, where, isOverlap)
  }

  private blame(
    cluster: number,
    at: number,
    entryAt: number,
    where: string,
    isOverlap: boolean,
  ): void {
    const offset = cluster * this.clusterBytes
    const message = () => `the entry of the cluster at ${offset} of the disk names ${at}, ${where}`
    this.sink.corruption(entryAt, message, isOverlap)
  }

  private tellUnused(from: number, to: number): void {
    const { l1End, l1Room } = l1Place(this.header)
    const start = from * this.granule
    // Programs write the L1 table in whole sectors, wherever it begins.
    const at = start >= l1End && start < l1Room ? l1Room : start
    const bytes = Math.min(to * this.granule, this.fileBytes) - at
    if (bytes >= this.clusterBytes) this.sink.unused?.(at, bytes)
  }
}

const BEYOND = 'beyond the end of the file'
const CUT_OFF = 'which the end of the file cuts off'

/** Where the L1 table ends, and where the room does that it was given; in bytes of the file. */
function l1Place({ l1Offset, l1Entries }: QcowHeader): { l1End: number; l1Room: number } {
  const l1Bytes = l1Entries * ENTRY_BYTES
  const roomBytes = Math.ceil(l1Bytes / SECTOR_BYTES) * SECTOR_BYTES
  return { l1End: l1Offset + l1Bytes, l1Room: l1Offset + roomBytes }
}

function regionsOf(header: QcowHeader): Region[] {
  const { backingNameOffset, backingNameBytes, l1Offset } = header
  const name = "the backing file's name"
  return [
    { name: 'the header', offset: 0, end: HEADER.size },
    { name, offset: backingNameOffset, end: backingNameOffset + backingNameBytes },
    { name: 'the L1 table', offset: l1Offset, end: l1Place(header).l1End },
  ].filter(({ offset, end }) => end > offset)
}
