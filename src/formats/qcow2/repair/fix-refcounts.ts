/**
 * Sets the reference counts to the number of references in the tables.
 *
 * A power cut may keep any subset of the writes since the last sync. After every such subset the image is no worse than
 * before:
 *
 *  (1) New refcount blocks, and a new refcount table, lie after the end of the file or in clusters that nothing uses
 *      (refcount-places.ts). They are filled, counted and synced before anything points at them.
 *  (2) Counts in sound blocks change in place: each is either the old, wrong one or the right one.
 *  (3) A block that shares its cluster with something else is not written: a new block replaces it.
 */
import type { WritableStore } from '../../../io/store.js'
import { Census } from '../check/census.js'
import { Qcow2Structure } from '../check/structure.js'
import type { Qcow2Report } from '../check/report.js'
import { clustersOf, type FindingRun, FindingRuns } from '../check/finding-runs.js'
import { type CellMemory, REFERENCES } from '../check/window.js'
import { writeRefcounts, writeRefcountTable } from '../header-update.js'
import { placeRefcounts, type RefcountPlaces } from './refcount-places.js'
import { Survey } from './survey.js'

export interface CountChanges {
  /** How many counts were too low. */
  raised: number
  /** How many counts were too high. */
  lowered: number
  /** How many refcount blocks were made. */
  newBlocks: number
}

export interface CountOptions {
  /** Which counts may be raised. With `none`, no new block is made either. */
  readonly raise: 'all' | 'none'
  /** Which counts may be lowered: all, those of clusters that nothing uses, or none. */
  readonly lower: 'all' | 'unused' | 'none'
}

/** Corrects the counts. Throws ImageError if they cannot be stored, SystemError. Everything is synced when it returns. */
export function fixCounts(
  store: WritableStore,
  options: CountOptions,
  report: Qcow2Report | undefined,
  memory: CellMemory,
): CountChanges {
  const survey = new Survey(new Census(new Qcow2Structure(store), memory))
  const changes: CountChanges = { raised: 0, lowered: 0, newBlocks: 0 }
  let census = survey.census
  if (options.raise === 'all' && survey.isIncomplete) {
    const places = placeRefcounts(store, survey, options.lower === 'all')
    changes.newBlocks = new Completion(store, survey, places, options, report).run()
    census = new Census(new Qcow2Structure(store), memory)
  }
  changeInPlace(store, census, survey, options, changes, report)
  store.sync()
  return changes
}

/** Makes the missing blocks, and a new table if the old one cannot name them. */
class Completion {
  private readonly image: Qcow2Structure
  private readonly slice: Buffer

  constructor(
    private readonly store: WritableStore,
    private readonly survey: Survey,
    private readonly places: RefcountPlaces,
    private readonly options: CountOptions,
    private readonly report: Qcow2Report | undefined,
  ) {
    const { image, blocks } = survey.census
    this.image = image
    this.slice = Buffer.alloc(blocks.sliceBytes)
  }

  run(): number {
    const { store, survey, image, report, places } = this
    const { census } = survey
    census.run(undefined, () => this.writeBlocks(census.window.first, census.window.end))
    this.writeBlocks(image.clusters + 1, places.end)
    const table = this.tableOf()
    const tableAt = places.table * image.clusterBytes
    if (places.tableClusters > 0) store.write(table, 0, table.length, tableAt)
    // Rule (1).
    store.sync()
    if (places.tableClusters > 0) {
      const { version, refcountOrder } = image.header
      if (version < 3) writeRefcountTable(store, tableAt, places.tableClusters)
      // Also write the width of the counts, which may be damaged.
      else writeRefcounts(store, tableAt, places.tableClusters, refcountOrder)
      report?.note('fix', tableAt, () => 'a new refcount table lies here')
    } else {
      store.write(table, 0, table.length, image.header.refcountTableOffset)
    }
    for (const [block, cluster] of places.blocks) {
      const at = cluster * image.clusterBytes
      report?.note('fix', at, () => `a new refcount block ${block} lies here`)
    }
    const dropped = this.countDropped()
    if (dropped > 0) {
      report?.note(
        'fix',
        image.header.refcountTableOffset,
        () =>
          `entries of the refcount table are cleared: ${dropped} named something else than a refcount block`,
      )
    }
    store.sync()
    return places.blocks.size
  }

  /** Returns how many blocks the table names at impossible places that nothing needs. */
  private countDropped(): number {
    const { isSound, census } = this.survey
    let dropped = 0
    const { blocks } = census
    for (let block = blocks.next(0); block < blocks.entries; block = blocks.next(block + 1)) {
      if (!isSound[block] && !this.places.blocks.has(block)) dropped++
    }
    return dropped
  }

  /** Writes the counts of the clusters from `first` on, in new blocks and in old ones that count new blocks. */
  private writeBlocks(first: number, end: number): void {
    const { survey, slice, store, places } = this
    const { blocks, window } = survey.census
    const { maxCount } = this.image
    const start = Math.ceil(first / blocks.perSlice) * blocks.perSlice
    for (let cluster = start; cluster < end; cluster += blocks.perSlice) {
      const stop = cluster + blocks.perSlice
      const block = Math.floor(cluster / blocks.perBlock)
      const own = places.blocks.get(block)
      const hasNew = places.takesFrom(cluster, stop)
      if (own === undefined && !hasNew) continue
      if (own === undefined) blocks.slice(cluster)?.copy(slice)
      else slice.fill(0)
      for (let i = cluster; i < Math.min(stop, Math.max(window.end, places.end)); i++) {
        const isNew = hasNew && places.takesFrom(i, i + 1)
        if (own === undefined && !isNew) continue
        const references = i < window.end ? window.referencesTo(i) : 0
        const isKept = references === 0 && own !== undefined && this.mayBeOwned(block, i)
        blocks.write(slice, i - cluster, isNew || isKept ? 1 : Math.min(references, maxCount))
      }
      const inBlock = ((cluster % blocks.perBlock) / blocks.perSlice) * blocks.sliceBytes
      const at =
        own === undefined ? blocks.placeOf(cluster) : own * this.image.clusterBytes + inBlock
      store.write(slice, 0, slice.length, at)
      blocks.forget()
    }
  }

  /**
   * Reports whether a cluster without references, whose count is lost, may belong to another lost structure. Then it counts as
   * used.
   */
  private mayBeOwned(block: number, cluster: number): boolean {
    const { clusterBytes, clusters } = this.image
    // A block that nothing needs was never made, so its counts are 0 and not lost.
    if (this.options.lower !== 'none' || !this.survey.isNeeded[block]) return false
    const at = cluster * clusterBytes
    if (cluster >= clusters) return false
    const data = this.store.nextData(at)
    return data >= 0 && data < at + clusterBytes
  }

  /** Returns the table with the sound blocks and the new ones. */
  private tableOf(): Buffer {
    const { survey, image, places } = this
    const { blocks } = survey.census
    const clusters = places.tableClusters || image.header.refcountTableClusters
    const table = Buffer.alloc(clusters * image.clusterBytes)
    const put = (block: number, at: number) => {
      table.writeUInt32BE(Math.floor(at / 2 ** 32), block * 8)
      table.writeUInt32BE(at % 2 ** 32, block * 8 + 4)
    }
    for (let block = blocks.next(0); block < blocks.entries; block = blocks.next(block + 1)) {
      if (survey.isSound[block]) put(block, blocks.offsetOf(block))
    }
    for (const [block, cluster] of places.blocks) put(block, cluster * image.clusterBytes)
    return table
  }
}

/** Changes counts in place: rule (2). */
function changeInPlace(
  store: WritableStore,
  census: Census,
  survey: Survey,
  options: CountOptions,
  changes: CountChanges,
  report: Qcow2Report | undefined,
): void {
  const { blocks, window, image } = census
  // After a completion every block in the table is sound.
  const isSame = census === survey.census
  census.run(undefined, () => {
    const { cells, first } = window
    const runs = new FindingRuns<'fix'>(run => describe(run, image.clusterBytes, report))
    for (let from = first; from < window.end; from += blocks.perSlice) {
      const at = blocks.placeOf(from)
      if (at === 0 || (isSame && !survey.isSound[Math.floor(from / blocks.perBlock)])) continue
      const slice = blocks.slice(from)
      if (!slice) continue
      let isChanged = false
      const stop = Math.min(window.end, from + blocks.perSlice)
      for (let cluster = from; cluster < stop; cluster++) {
        const references = (cells[cluster - first] as number) & REFERENCES
        const expected = Math.min(references, image.maxCount)
        const counted = blocks.read(slice, cluster - from)
        if (counted === expected) continue
        if (!isAllowed(counted, expected, options)) continue
        if (counted < expected) changes.raised++
        else changes.lowered++
        blocks.write(slice, cluster - from, expected)
        isChanged = true
        runs.add(cluster, 'fix', counted, expected)
      }
      if (isChanged) store.write(slice, 0, slice.length, at)
    }
    runs.end()
  })
}

function isAllowed(counted: number, expected: number, { raise, lower }: CountOptions): boolean {
  if (counted < expected) return raise === 'all'
  return lower === 'all' || (lower === 'unused' && expected === 0)
}

function describe(
  run: FindingRun<'fix'>,
  clusterBytes: number,
  report: Qcow2Report | undefined,
): void {
  const { start, counted, references } = run
  report?.note(
    'fix',
    start * clusterBytes,
    () => `${clustersOf(run)}: count ${references} now, not ${counted}`,
  )
}
