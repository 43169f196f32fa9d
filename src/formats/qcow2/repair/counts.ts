/**
 * Making the reference counts what the tables say.
 *
 * A power cut may keep any subset of the writes since the last sync. After every such subset the image
 * is no worse than it was:
 *
 *  (1) New refcount blocks, and a new refcount table, lie behind the end of the file. They are filled,
 *      and counted, and synced before anything points at them.
 *  (2) Counts in blocks that are sound change where they are: each is either the old, wrong one or the
 *      right one.
 *  (3) A block whose cluster something else uses, too, is not written: another takes its place.
 */
import { ImageError } from '../../../errors.js'
import type { WritableStore } from '../../../io/store.js'
import { MAX_REFCOUNT_TABLE_BYTES } from '../../limits.js'
import { Census } from '../check/census.js'
import { CheckedImage } from '../check/image.js'
import type { Report } from '../check/report.js'
import { clustersOf, type Run, Runs } from '../check/runs.js'
import { type CellMemory, REFERENCES } from '../check/window.js'
import { writeRefcountTable } from '../header-update.js'
import { lowestDangling } from './dangling.js'

export interface CountChanges {
  /** Clusters that were counted too low. */
  raised: number
  /** Clusters that were counted too high. */
  lowered: number
  /** Refcount blocks that were made. */
  newBlocks: number
}

export interface CountOptions {
  /** Which counts may become higher: with `none`, no new block is made either. */
  readonly raise: 'all' | 'none'
  /** Which may become lower: all, those of clusters that nothing uses, or none. */
  readonly lower: 'all' | 'unused' | 'none'
}

const MAX_BLOCKS = MAX_REFCOUNT_TABLE_BYTES / 8

/** Throws ImageError where counts cannot be stored, SystemError. Leaves all synced. */
export function fixCounts(
  store: WritableStore,
  options: CountOptions,
  report: Report | undefined,
  memory: CellMemory,
): CountChanges {
  const survey = new Survey(new Census(new CheckedImage(store), memory))
  const changes: CountChanges = { raised: 0, lowered: 0, newBlocks: 0 }
  let census = survey.census
  if (options.raise === 'all' && survey.isIncomplete) {
    changes.newBlocks = new Completion(store, survey, report).run()
    census = new Census(new CheckedImage(store), memory)
  }
  changeInPlace(store, census, survey, options, changes, report)
  store.sync()
  return changes
}

/** Which parts of the refcount structure are sound, and which are needed. */
class Survey {
  /** Block → whether a cluster that it counts is used. */
  readonly isNeeded: Uint8Array
  /** Block → whether it can be written where it is. */
  readonly isSound: Uint8Array
  isTableSound = true
  /** The first cluster behind all that is used. */
  readonly end: number

  constructor(readonly census: Census) {
    const { blocks, image, window } = census
    const total = Math.ceil((image.clusters + 1) / blocks.perBlock)
    this.isNeeded = new Uint8Array(Math.max(blocks.entries, Math.min(total, MAX_BLOCKS + 1)))
    this.isSound = new Uint8Array(this.isNeeded.length)
    const { refcountTableOffset, refcountTableClusters } = image.header
    const table = refcountTableOffset / image.clusterBytes
    census.run(undefined, () => {
      this.visitNeeded()
      for (let block = blocks.next(0); block < blocks.entries; block = blocks.next(block + 1)) {
        const cluster = blocks.offsetOf(block) / image.clusterBytes
        if (cluster < window.first || cluster >= window.end) continue
        const isAlone = window.referencesTo(cluster) === 1
        if (isAlone && census.problemOf(block) === undefined) this.isSound[block] = 1
      }
      for (let i = table; i < table + refcountTableClusters; i++) {
        if (i < window.first || i >= window.end) continue
        if (window.referencesTo(i) !== 1) this.isTableSound = false
      }
    })
    this.end = image.clusters + (census.reachesBeyond ? 1 : 0)
    if (table + refcountTableClusters > image.clusters) this.isTableSound = false
  }

  /** Whether a block is missing, or one that cannot be is named. */
  get isIncomplete(): boolean {
    const { blocks } = this.census
    if (!this.isTableSound) return true
    for (let block = 0; block < this.isNeeded.length; block++) {
      if (this.isNeeded[block] && !this.isSound[block]) return true
    }
    for (let block = blocks.next(0); block < blocks.entries; block = blocks.next(block + 1)) {
      if (!this.isSound[block]) return true
    }
    return false
  }

  private visitNeeded(): void {
    const { window, blocks } = this.census
    const { cells, first, end } = window
    for (let cluster = first; cluster < end; ) {
      const block = Math.floor(cluster / blocks.perBlock)
      const stop = Math.min(end, (block + 1) * blocks.perBlock)
      for (; cluster < stop && !this.isNeeded[block]; cluster++) {
        if (((cells[cluster - first] as number) & REFERENCES) === 0) continue
        if (block >= MAX_BLOCKS) throw tooLarge(this.census.image)
        this.isNeeded[block] = 1
      }
      cluster = stop
    }
  }
}

/** Makes the blocks that are missing, and a table where the old one cannot name them. */
class Completion {
  private readonly image: CheckedImage
  /** Ascending; the first one lies at cluster `start`, the others behind it. */
  private readonly missing: number[]
  private readonly start: number
  /** Block → its index in `missing`, or -1. */
  private readonly indexes: Int32Array
  /** Of the new table, which lies behind the blocks; 0: the old one stays. */
  private readonly tableClusters: number
  /** The first cluster behind all that is new. */
  private readonly end: number
  private readonly slice: Buffer

  constructor(
    private readonly store: WritableStore,
    private readonly survey: Survey,
    private readonly report: Report | undefined,
  ) {
    const { image, blocks } = survey.census
    this.image = image
    this.slice = Buffer.alloc(blocks.sliceBytes)
    this.start = survey.end
    const missing = Array.from(survey.isNeeded.keys()).filter(b => this.isMissing(b))
    let { end } = survey
    let tableClusters = 0
    // What is new is counted, too, which may need more blocks, and these a longer table.
    for (;;) {
      const last = Math.floor((end - 1) / blocks.perBlock)
      for (let b = Math.floor(this.start / blocks.perBlock); end > this.start && b <= last; b++) {
        if (!survey.isSound[b] && b > (missing.at(-1) ?? -1)) missing.push(b)
      }
      const entries = Math.max(blocks.entries, (missing.at(-1) ?? 0) + 1)
      if (entries > MAX_BLOCKS) throw tooLarge(image)
      if (!survey.isTableSound || entries > blocks.entries) {
        tableClusters = Math.ceil((entries * 8) / image.clusterBytes)
      }
      const needed = this.start + missing.length + tableClusters
      if (needed === end) break
      end = needed
    }
    this.missing = missing
    this.indexes = new Int32Array((missing.at(-1) ?? -1) + 1).fill(-1)
    missing.forEach((block, i) => {
      this.indexes[block] = i
    })
    this.tableClusters = tableClusters
    this.end = end
  }

  run(): number {
    this.refuseDangling()
    const { store, survey, image, report } = this
    const { census } = survey
    census.run(undefined, () => this.writeBlocks(census.window.first, census.window.end))
    this.writeBlocks(image.clusters + 1, this.end)
    const bytes = this.end * image.clusterBytes
    if (store.sizeBytes < bytes) store.truncate(bytes)
    const table = this.tableOf()
    const tableAt = (this.start + this.missing.length) * image.clusterBytes
    if (this.tableClusters > 0) store.write(table, 0, table.length, tableAt)
    // Rule (1).
    store.sync()
    if (this.tableClusters > 0) {
      writeRefcountTable(store, tableAt, this.tableClusters)
      report?.note('fix', tableAt, () => 'a new refcount table lies here')
    } else {
      store.write(table, 0, table.length, image.header.refcountTableOffset)
    }
    this.missing.forEach((block, i) => {
      const at = (this.start + i) * image.clusterBytes
      report?.note('fix', at, () => `a new refcount block ${block} lies here`)
    })
    const dropped = this.countDropped()
    if (dropped > 0) {
      report?.note(
        'fix',
        image.header.refcountTableOffset,
        () =>
          `entries of the refcount table are cleared: ${dropped} named what is no refcount block`,
      )
    }
    store.sync()
    return this.missing.length
  }

  private isMissing(block: number): boolean {
    return this.survey.isNeeded[block] === 1 && this.survey.isSound[block] === 0
  }

  /** How many blocks the table named where none can be, and that nothing needs. */
  private countDropped(): number {
    const { isSound, census } = this.survey
    let dropped = 0
    const { blocks } = census
    for (let block = blocks.next(0); block < blocks.entries; block = blocks.next(block + 1)) {
      if (!isSound[block] && (this.indexes[block] ?? -1) < 0) dropped++
    }
    return dropped
  }

  /** What points behind the end of the file must not find counts there. */
  private refuseDangling(): void {
    const { image, survey } = this
    if (lowestDangling(survey.census) >= this.end) return
    throw new ImageError(
      'CORRUPT',
      'its tables point behind the end of the file, where new reference counts would have to be',
      { path: image.store.path, hint: 'save its data with qemu-img convert, or restore a copy' },
    )
  }

  /** Writes what new blocks, and old ones that count them, say of the clusters from `first` on. */
  private writeBlocks(first: number, end: number): void {
    const { survey, slice, store } = this
    const { blocks, window } = survey.census
    const { maxCount } = this.image
    const start = Math.ceil(first / blocks.perSlice) * blocks.perSlice
    for (let cluster = start; cluster < end; cluster += blocks.perSlice) {
      const stop = cluster + blocks.perSlice
      const block = Math.floor(cluster / blocks.perBlock)
      const index = this.indexes[block] ?? -1
      if (index < 0 && (stop <= this.start || cluster >= this.end)) continue
      if (index < 0) blocks.slice(cluster)?.copy(slice)
      else slice.fill(0)
      for (let i = cluster; i < Math.min(stop, Math.max(window.end, this.end)); i++) {
        const isNew = i >= this.start && i < this.end
        if (index < 0 && !isNew) continue
        const references = i < window.end ? window.referencesTo(i) : 0
        blocks.write(slice, i - cluster, isNew ? 1 : Math.min(references, maxCount))
      }
      const inBlock = ((cluster % blocks.perBlock) / blocks.perSlice) * blocks.sliceBytes
      const at =
        index < 0
          ? blocks.placeOf(cluster)
          : (this.start + index) * this.image.clusterBytes + inBlock
      store.write(slice, 0, slice.length, at)
      blocks.forget()
    }
  }

  /** The table with the blocks that are sound, and the new ones. */
  private tableOf(): Buffer {
    const { survey, image } = this
    const { blocks } = survey.census
    const clusters = this.tableClusters || image.header.refcountTableClusters
    const table = Buffer.alloc(clusters * image.clusterBytes)
    const put = (block: number, at: number) => {
      table.writeUInt32BE(Math.floor(at / 2 ** 32), block * 8)
      table.writeUInt32BE(at % 2 ** 32, block * 8 + 4)
    }
    for (let block = blocks.next(0); block < blocks.entries; block = blocks.next(block + 1)) {
      if (survey.isSound[block]) put(block, blocks.offsetOf(block))
    }
    this.missing.forEach((block, i) => {
      put(block, (this.start + i) * image.clusterBytes)
    })
    return table
  }
}

/** Rule (2). */
function changeInPlace(
  store: WritableStore,
  census: Census,
  survey: Survey,
  options: CountOptions,
  changes: CountChanges,
  report: Report | undefined,
): void {
  const { blocks, window, image } = census
  // After a completion every block that is named is sound.
  const isSame = census === survey.census
  census.run(undefined, () => {
    const { cells, first } = window
    const runs = new Runs<'fix'>(run => describe(run, image.clusterBytes, report))
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

function describe(run: Run<'fix'>, clusterBytes: number, report: Report | undefined): void {
  const { start, counted, references } = run
  report?.note(
    'fix',
    start * clusterBytes,
    () => `${clustersOf(run)}: count ${references} now, not ${counted}`,
  )
}

function tooLarge(image: CheckedImage): ImageError {
  return new ImageError('UNSUPPORTED', 'its reference counts do not fit in a refcount table', {
    path: image.store.path,
    hint: 'convert it to larger clusters with qemu-img convert',
  })
}
