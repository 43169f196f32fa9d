/**
 * The reference counts of the new state. A refcount block that changes gets a new place, so the old state keeps its own block,
 * and a new refcount table names the new ones. The new places are counted in the new state, and the old ones are not.
 */
import { constants } from 'node:os'
import { ImageError, SystemError } from '../../../errors.js'
import type { WritableStore } from '../../../io/store.js'
import { MAX_REFCOUNT_TABLE_BYTES } from '../../limits.js'
import { SnapshotLimit } from '../../snapshot-limit.js'
import { getCount, setCount } from '../refcount-bits.js'
import { clusterBytes, type Qcow2Header } from '../header.js'
import type { FreeSpace } from './free-space.js'
import { type OldCounts, readWhole } from './old-counts.js'

const { EFBIG } = constants.errno
/** How much of the blocks is kept in memory. */
const CACHE_BYTES = 64 * 2 ** 20

interface Page {
  readonly index: number
  readonly bytes: Buffer
  isDirty: boolean
}

/** Clusters in a row. */
export interface Row {
  readonly cluster: number
  readonly clusters: number
}

export class NewCounts {
  private readonly perBlock: number
  private readonly clusterBytes: number
  private readonly order: number
  private readonly maxCount: number
  private readonly maxPages: number
  /** By index, the last used one last. */
  private readonly pages = new Map<number, Page>()
  private current: Page | undefined
  /** The new places of blocks, by index, in clusters; 0 where a block has not changed. */
  private places: Float64Array
  /** One more than the highest index of a block. */
  private blocks: number
  /** Blocks that have changed and have no new place yet. */
  private readonly unplaced: number[] = []
  private isPlacing = false

  constructor(
    private readonly store: WritableStore,
    private readonly header: Qcow2Header,
    private readonly old: OldCounts,
    private readonly space: FreeSpace,
  ) {
    this.clusterBytes = clusterBytes(header)
    this.order = header.refcountOrder
    this.perBlock = old.perBlock
    this.maxCount = Math.min(2 ** (2 ** this.order) - 1, Number.MAX_SAFE_INTEGER)
    this.maxPages = Math.ceil(CACHE_BYTES / this.clusterBytes)
    this.places = new Float64Array(Math.max(1, old.places.length))
    this.blocks = old.places.length
  }

  get(cluster: number): number {
    return getCount(this.pageOf(cluster).bytes, cluster % this.perBlock, this.order)
  }

  /** Changes the count of a cluster by `change`. Throws ImageError if the new count cannot be, SystemError. */
  add(cluster: number, change: number): void {
    const page = this.pageOf(cluster)
    const inBlock = cluster % this.perBlock
    const count = getCount(page.bytes, inBlock, this.order) + change
    if (count < 0) throw this.tooLow(cluster)
    if (count > this.maxCount) throw this.tooHigh()
    setCount(page.bytes, inBlock, this.order, count)
    if (page.isDirty) return
    page.isDirty = true
    if (!this.placeOf(page.index)) this.unplaced.push(page.index)
    this.placeBlocks()
  }

  addRow({ cluster, clusters }: Row, change: number): void {
    const { order, maxCount, perBlock } = this
    for (let done = 0; done < clusters; ) {
      const first = cluster + done
      const inBlock = first % perBlock
      const count = Math.min(clusters - done, perBlock - inBlock)
      // This makes the block one that has changed.
      this.add(first, change)
      const page = this.pageOf(first)
      page.isDirty = true
      const { bytes } = page
      for (let i = inBlock + 1; i < inBlock + count; i++) {
        const next = getCount(bytes, i, order) + change
        if (next < 0) throw this.tooLow(first - inBlock + i)
        if (next > maxCount) throw this.tooHigh()
        setCount(bytes, i, order, next)
      }
      done += count
    }
  }

  /** Takes clusters in a row for a table of `bytes` bytes, and counts them once. */
  takeRow(bytes: number): Row {
    const clusters = Math.ceil(bytes / this.clusterBytes)
    if (clusters === 0) return { cluster: 0, clusters }
    const row = { cluster: this.space.takeRow(clusters), clusters }
    this.addRow(row, 1)
    return row
  }

  /** Returns the place of the block with this index in the file; 0 if there is none. */
  offsetOf(index: number): number {
    return this.placeOf(index) * this.clusterBytes || (this.old.places[index] ?? 0)
  }

  /** Reports whether the block with this index has changed. */
  hasChanged(index: number): boolean {
    return this.placeOf(index) > 0
  }

  /** Writes the blocks and a new table that names them. No count may change afterwards. */
  write(): Row {
    const { refcountTableOffset, refcountTableClusters: clusters } = this.header
    this.addRow({ cluster: refcountTableOffset / this.clusterBytes, clusters }, -1)
    const row = this.placeTable()
    const bytes = Buffer.alloc(row.clusters * this.clusterBytes)
    for (const page of this.pages.values()) this.clean(page)
    for (let index = 0; index < this.blocks; index++) {
      bytes.writeBigUInt64BE(BigInt(this.offsetOf(index)), index * 8)
    }
    this.store.write(bytes, 0, bytes.length, row.cluster * this.clusterBytes)
    return row
  }

  /** Takes room for the table. It has to name the block that counts it, too. */
  private placeTable(): Row {
    for (;;) {
      const bytes = this.blocks * 8
      if (bytes > MAX_REFCOUNT_TABLE_BYTES) throw new SystemError('write', EFBIG, this.store.path)
      const row = this.takeRow(bytes)
      if (this.blocks * 8 <= row.clusters * this.clusterBytes) return row
      this.addRow(row, -1)
    }
  }

  private placeOf(index: number): number {
    return this.places[index] ?? 0
  }

  /** Gives new places to the blocks that have changed. Each place changes a count, so that more blocks may change. */
  private placeBlocks(): void {
    if (this.isPlacing) return
    this.isPlacing = true
    for (let index = this.unplaced.pop(); index !== undefined; index = this.unplaced.pop()) {
      const place = this.space.takeOne()
      this.setPlace(index, place)
      this.add(place, 1)
      const old = this.old.places[index] ?? 0
      if (old > 0) this.add(old / this.clusterBytes, -1)
    }
    this.isPlacing = false
  }

  private setPlace(index: number, cluster: number): void {
    if (index >= this.places.length) {
      const longer = new Float64Array(Math.max(index + 1, this.places.length * 2))
      longer.set(this.places)
      this.places = longer
    }
    this.places[index] = cluster
    this.blocks = Math.max(this.blocks, index + 1)
  }

  private pageOf(cluster: number): Page {
    const index = Math.floor(cluster / this.perBlock)
    if (this.current?.index === index) return this.current
    const known = this.pages.get(index)
    if (known) this.pages.delete(index)
    else if (this.pages.size >= this.maxPages) this.evict()
    const page = known ?? this.load(index)
    this.pages.set(index, page)
    this.current = page
    return page
  }

  private load(index: number): Page {
    const bytes = Buffer.alloc(this.clusterBytes)
    readWhole(this.store, bytes, this.offsetOf(index))
    return { index, bytes, isDirty: false }
  }

  /** Makes room for a page, if it can: a changed block without a place stays. */
  private evict(): void {
    for (const page of this.pages.values()) {
      if (page.isDirty && !this.hasChanged(page.index)) continue
      this.clean(page)
      this.pages.delete(page.index)
      return
    }
  }

  private clean(page: Page): void {
    if (!page.isDirty) return
    const at = this.placeOf(page.index) * this.clusterBytes
    this.store.write(page.bytes, 0, page.bytes.length, at)
    page.isDirty = false
  }

  private tooLow(cluster: number): ImageError {
    const what = `the reference count of the cluster at ${cluster * this.clusterBytes} is lower than the number of its references`
    return new ImageError('CORRUPT', what, {
      path: this.store.path,
      hint: 'repair it with vimgfs check --repair all',
    })
  }

  private tooHigh(): ImageError {
    const bits = 2 ** this.order
    const what = `a cluster would have more than ${this.maxCount} references, the most that its reference counts of ${bits} bits can hold`
    return new SnapshotLimit(what, {
      path: this.store.path,
      hint: 'delete a snapshot, or convert the image to wider counts',
    })
  }
}
