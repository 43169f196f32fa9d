/**
 * Counts all references of an image, window by window, in bounded memory: 32 MiB of counts, the refcount table (8 MiB at
 * most), lists of L2 tables (7 MiB each) and buffers.
 */
import { bitmapClusters } from './bitmap-clusters.js'
import type { Qcow2Structure, L1Table } from './structure.js'
import { L2Catalog } from './l1-walk.js'
import { L2Reader } from './l2-read.js'
import { L2Scan } from './l2-scan.js'
import { RefcountBlocks } from './refcount-blocks.js'
import type { Qcow2Report } from './report.js'
import { CellMemory, COUNTED_ONCE, EXCLUSIVE, UNKNOWN, Window } from './window.js'

/** The share of the work on a window that the walk over the active tables has; the walk over the others has as much. */
const WALK_SHARE = 0.45

export class Census {
  readonly window: Window
  readonly blocks: RefcountBlocks
  readonly reader: L2Reader
  readonly activeTables: L2Catalog
  readonly snapshotTables: L2Catalog
  private readonly scan: L2Scan
  private isBeyond = false
  private dangling = Number.POSITIVE_INFINITY

  constructor(
    readonly image: Qcow2Structure,
    memory = new CellMemory(),
  ) {
    const { store, fileBytes, l1Tables } = image
    // A structure that begins in the file's last cluster may end in the next one.
    this.window = new Window(image.clusters + 1, memory)
    this.blocks = new RefcountBlocks(image)
    this.reader = new L2Reader(image)
    this.scan = new L2Scan(image, this.reader, this.window, this.blocks)
    const catalog = (tables: L1Table[]) => new L2Catalog(store, tables, fileBytes)
    this.activeTables = catalog(l1Tables.filter(table => table.isActive))
    this.snapshotTables = catalog(l1Tables.filter(table => !table.isActive))
  }

  /** Whether something names the cluster after the end of the file. Known after the last window. */
  get reachesBeyond(): boolean {
    return this.isBeyond || this.scan.reachesBeyond
  }

  /** Whether an entry does not say where its data are. Known after the first window with a report. */
  get hasLost(): boolean {
    return this.scan.hasLost
  }

  /**
   * The lowest cluster past the end of the file that a structure reaches, or that an entry of an L2 or bitmap table names.
   * Known after the first window.
   */
  get lowestDangling(): number {
    return Math.min(this.dangling, this.scan.lowestDangling)
  }

  /**
   * Goes over the image. `visit` is called with `window` filled.
   *
   * @param report gets the findings, if given
   */
  run(report: Qcow2Report | undefined, visit: () => void, progress?: (part: number) => void): void {
    const { window, image } = this
    for (let first = 0; first <= image.clusters; first += window.length) {
      window.begin(first)
      this.markCounts()
      const isFirst = first === 0
      /** Tells how far the work on the window is, from 0 to 1. */
      const tell = (share: number) =>
        progress?.((first + window.length * share) / (image.clusters + 1))
      const walked = (at: number) => (WALK_SHARE * at) / image.fileBytes
      this.countRegions(isFirst ? report : undefined)
      for (const part of this.activeTables.parts()) {
        this.scan.scan(part, isFirst ? report : undefined, report, at => tell(walked(at)))
      }
      for (const part of this.snapshotTables.parts()) {
        const reached = (at: number) => tell(WALK_SHARE + walked(at))
        this.scan.scan(part, isFirst ? report : undefined, undefined, reached)
      }
      this.countBitmapClusters(isFirst ? report : undefined)
      this.countBlocks(report)
      visit()
      tell(1)
    }
  }

  /** Marks the clusters of the window whose count is 1, for the COPIED flags. */
  markCounts(): void {
    const { window, blocks } = this
    const { cells, first, end } = window
    for (let cluster = first; cluster < end; cluster += blocks.perSlice) {
      const stop = Math.min(end, cluster + blocks.perSlice)
      const slice = blocks.slice(cluster)
      if (!slice) {
        for (let i = cluster; i < stop; i++) cells[i - first] = UNKNOWN
      } else if (blocks.placeOf(cluster) > 0) {
        for (let i = cluster; i < stop; i++) {
          if (blocks.read(slice, i - cluster) === 1) cells[i - first] = COUNTED_ONCE
        }
      }
    }
  }

  private countRegions(report: Qcow2Report | undefined): void {
    const { image, window } = this
    for (const { name, at, bytes } of image.regions) {
      if (!image.isInFile(at, bytes)) {
        this.pointsBehind(at)
        report?.corruption(at, () => `${name} at ${at} reaches past the end of the file`)
        continue
      }
      const last = Math.floor((at + bytes - 1) / image.clusterBytes)
      if (last >= image.clusters) this.isBeyond = true
      window.refer(Math.floor(at / image.clusterBytes), last, EXCLUSIVE)
    }
  }

  private countBitmapClusters(report: Qcow2Report | undefined): void {
    const { image, window } = this
    for (const { entryAt, at, isSound } of bitmapClusters(image)) {
      if (!isSound) {
        report?.corruption(entryAt, () => 'an entry of a bitmap table is damaged')
      } else if (at > 0 && !image.isInFile(at, image.clusterBytes)) {
        this.pointsBehind(at)
        report?.corruption(
          entryAt,
          () => `an entry of a bitmap table names a cluster at ${at}, past the end of the file`,
        )
      } else if (at > 0) {
        const cluster = at / image.clusterBytes
        window.refer(cluster, cluster, EXCLUSIVE)
      }
    }
  }

  private pointsBehind(at: number): void {
    const cluster = Math.floor(at / this.image.clusterBytes)
    this.dangling = Math.min(this.dangling, Math.max(cluster, this.image.clusters))
  }

  /** Counts the refcount blocks. They come last: a block that shares its cluster with anything cannot be trusted. */
  private countBlocks(report: Qcow2Report | undefined): void {
    const { blocks, image, window } = this
    const isFirst = window.first === 0
    const tableAt = image.header.refcountTableOffset
    for (let block = blocks.next(0); block < blocks.entries; block = blocks.next(block + 1)) {
      const at = blocks.offsetOf(block)
      const cluster = Math.floor(at / image.clusterBytes)
      const problem = this.problemOf(block)
      if (problem !== undefined) {
        if (isFirst) {
          report?.corruption(tableAt + block * 8, () => `refcount block ${block} ${problem}`)
        }
      } else if (cluster >= window.first && cluster < window.end) {
        const before = Math.min(window.referencesTo(cluster), image.maxCount)
        window.refer(cluster, cluster, EXCLUSIVE)
        if (Math.min(before + 1, image.maxCount) !== 1) {
          report?.corruption(
            tableAt + block * 8,
            () => `refcount block ${block} at ${at} shares its cluster`,
          )
        }
      }
    }
  }

  /** Returns why a block cannot be where the refcount table says; undefined if it can. */
  problemOf(block: number): string | undefined {
    const { blocks, image } = this
    const at = blocks.offsetOf(block)
    if (blocks.hasReservedBits(block)) return 'has reserved bits set in its table entry'
    if (blocks.isUnreadable(block)) return `at ${at} is not aligned`
    if (at >= image.fileBytes) return `at ${at} lies past the end of the file`
    return undefined
  }
}
