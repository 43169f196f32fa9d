/**
 * Checks the tables of an image: everything must lie in the file, and nothing may overlap (QEMU block/qcow.c).
 *
 * Maps find overlaps. The header, the backing file's name and the L1 table are entered first, then the L2 tables, then the
 * clusters in the order of the disk; of two that overlap, the later one is reported. A map covers a window of the file, so
 * that its size is bounded. Tables are checked in a first pass over all windows, and clusters in a second one. A damaged table
 * is not walked. Tables that are walked do not overlap, so there are no more of them than the file has room for.
 */
import type { Store } from '../../io/store.js'
import { FreeRuns } from '../check/free-runs.js'
import { SectorMap, WINDOW_BYTES } from '../check/sector-map.js'
import { clusterBytes, ENTRY_BYTES, isEncrypted, type QcowHeader, tableBytes } from './header.js'
import { l1Place, type Region, regionsOf } from './regions.js'
import type { InspectOptions, TableSink } from './table-sink.js'
import { type EntryVisitor, TableWalk } from './table-walk.js'
import { WindowPlan } from './window-plan.js'
import { SECTOR_BYTES } from '../../sector.js'

/**
 * Inspects all tables and entries. Throws SystemError; ImageError if so much of the file is in use, or said to be, that the
 * check would take hours; and what the sink throws.
 */
export function inspectTables(
  store: Store,
  header: QcowHeader,
  sink: TableSink,
  options: InspectOptions = {},
): void {
  new Inspection(store, header, sink, options).inspect()
}

const OTHERS = 'where another one, or a table, is'

class Inspection implements EntryVisitor {
  private readonly walk: TableWalk
  private readonly clusterBytes: number
  private readonly tableBytes: number
  private readonly fileBytes: number
  /** The place where programs append. */
  private readonly appendAt: number
  /** Nothing past this place is entered. */
  private readonly reach: number
  private readonly windowBytes: number
  private readonly regions: readonly Region[]

  /** The bytes of the file that a bit of the maps stands for. */
  private granule = SECTOR_BYTES
  /** Tables and clusters, which nothing may overlap. */
  private own: SectorMap
  /** These, and structures that may share a sector with their neighbours. */
  private used: SectorMap

  private allocated = 0
  private fragmented = 0
  private compressed = 0
  private endBytes = 0
  /** The end of the cluster that was counted last. */
  private lastEnd = -1
  private hasUnwritten = false

  /** Whether this is the first walk over the clusters. */
  private isFirst = true
  /**
   * The cluster that reaches into this window from the one before, and the one that reaches out of it, that were not reported
   * yet. There is at most one of each, because all such clusters overlap in the last sector of the window.
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
    this.checkRegions()
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
    // Regions may share a sector with neighbours without overlapping them.
    const region = this.regions.find(({ offset, end: last }) => at < last && end > offset)
    if (region) this.blameOnce(cluster, at, entryAt, `where ${region.name} is`, true)
    else if (this.own.isTaken(from, to)) this.blame(cluster, at, entryAt, OTHERS, true)
    this.used.take(from, to)
  }

  private map(): SectorMap {
    return new SectorMap(Math.ceil(this.reach / this.granule), this.windowBytes)
  }

  private checkRegions(): void {
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
   * Finds the windows that contain clusters, and the largest possible granule: as large as clusters and tables, if all are
   * aligned, also damaged tables, and if no compressed cluster shares its granule with others.
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

  /** Begins a window, and enters its regions. */
  private begin(window: number): void {
    this.own.begin(window)
    this.used.begin(window)
    for (const { offset, end } of this.regions) {
      this.used.take(Math.floor(offset / this.granule), Math.ceil(end / this.granule))
    }
  }

  private takeTables(isReported: boolean): void {
    this.walk.eachTable((index, table) => {
      const isSkipped = this.walk.isSkipped(index)
      if (isReported && !isSkipped && this.isMisplaced(index, table)) return
      if (!this.hasPlace(table)) return
      const end = table + this.tableBytes
      const [from, to] = [table / this.granule, end / this.granule]
      if (isReported && !this.walk.isSkipped(index) && this.used.isTaken(from, to)) {
        this.blameTable(index, table, OTHERS, true)
      }
      this.take(from, to)
      this.reaches(end)
    })
  }

  /** Reports whether a table is at a possible place, damaged or not. Then nothing else may lie there. */
  private hasPlace(table: number): boolean {
    const end = table + this.tableBytes
    if (table % SECTOR_BYTES !== 0 || end > this.reach) return false
    return end <= this.fileBytes || table === this.appendAt
  }

  /** Reports whether the table of an L1 entry is at an impossible place. If so, it also adds a finding and skips the table. */
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

  /** Reports whether the end of a cluster is lost. Encrypted clusters may lack their end (io/cipher-store.ts). */
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
    const { l1End, l1PaddedEnd } = l1Place(this.header)
    const start = from * this.granule
    // Programs write the L1 table in whole sectors, wherever it begins. So unused space begins after those.
    const at = start >= l1End && start < l1PaddedEnd ? l1PaddedEnd : start
    const bytes = Math.min(to * this.granule, this.fileBytes) - at
    if (bytes >= this.clusterBytes) this.sink.unused?.(at, bytes)
  }
}

const BEYOND = 'beyond the end of the file'
const CUT_OFF = 'which the end of the file cuts off'
