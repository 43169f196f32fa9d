/**
 * Reads and changes the reference counts of the clusters of a qcow2 file, and finds free clusters (QEMU
 * docs/interop/qcow2.rst, "Host cluster management").
 *
 *  (1) A cluster is handed out only if its count is 0 and no known metadata lives in it.
 *  (2) A new refcount block takes the first free cluster of those that it counts, so that it counts itself. It is whole in
 *      the file before the table names it.
 *  (3) A new refcount table, and the blocks that count it, are on the disk before the header names it.
 *
 * The caller holds the exclusive side of the disk's lock.
 */
import { constants } from 'node:os'
import type { MetadataCache } from '../../cache/metadata-cache.js'
import type { TablePool } from '../../cache/table-pool.js'
import { ImageError, orEndWriting, SystemError } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import { MAX_REFCOUNT_TABLE_BYTES } from '../limits.js'
import { preallocate, preallocated } from '../preallocate.js'
import { getCount, setCount } from './refcount-bits.js'
import type { FreeQueue } from './free-queue.js'
import { type MetadataMap, KIND } from './metadata-map.js'
import { writeRefcountTable } from './header-update.js'
import { blockOffset } from './words.js'
import { STATE } from './write-memory.js'
import { STAGE } from './write/stages.js'

const { EFBIG } = constants.errno

export interface RefcountParts {
  readonly store: WritableStore
  readonly storeId: number
  readonly metadata: MetadataCache
  readonly pool: TablePool
  readonly metadataMap: MetadataMap
  readonly freed: FreeQueue
  readonly state: Float64Array
  readonly clusterBytes: number
  readonly sliceBytes: number
  readonly refcountOrder: number
}

/** Clusters that are counted, and to which nothing points yet. */
export interface ClusterRun {
  readonly cluster: number
  readonly clusters: number
  /** Whether the file was never written there, so that it reads as zeros. */
  readonly isZeroed: boolean
}

/** The search goes back if at least so many clusters were freed before its place, and at least one of PASSED_EACH that it passed. */
const MIN_FREED_TO_GO_BACK = 64
const PASSED_EACH = 1024
/** A host offset has 56 bits; files end at 2^63, numbers at 2^53. */
const MAX_FILE_BYTES = 2 ** 53

export class Refcounts {
  /** How many clusters one block counts, and one slice of it. */
  private readonly perBlock: number
  private readonly perSlice: number

  constructor(private readonly parts: RefcountParts) {
    this.perBlock = (parts.clusterBytes * 8) / 2 ** parts.refcountOrder
    this.perSlice = (parts.sliceBytes * 8) / 2 ** parts.refcountOrder
  }

  /** Returns the count of a cluster. Throws ImageError if it cannot be read. */
  count(cluster: number): number {
    const block = this.blockAt(Math.floor(cluster / this.perBlock))
    return block === 0 ? 0 : this.countIn(this.slice(block, cluster), cluster)
  }

  /** Allocates up to `wanted` clusters in a row and sets their counts to 1. Throws SystemError if none is left. */
  allocate(wanted: number): ClusterRun {
    const { state, clusterBytes, store } = this.parts
    this.goBack()
    for (let cluster = state[STATE.cursor] as number; ; ) {
      const index = Math.floor(cluster / this.perBlock)
      const block = this.blockAt(index) || this.addBlock(index)
      const slice = this.slice(block, cluster)
      const sliceEnd = (Math.floor(cluster / this.perSlice) + 1) * this.perSlice
      while (cluster < sliceEnd && !this.isFree(slice, cluster)) cluster++
      if (cluster === sliceEnd) continue
      let end = cluster + 1
      while (end < sliceEnd && end - cluster < wanted && this.isFree(slice, end)) end++
      if (end * clusterBytes > MAX_FILE_BYTES) throw new SystemError('write', EFBIG, store.path)
      this.preallocateSlice(block, cluster)
      this.set(block, cluster, end - cluster, 1)
      state[STATE.cursor] = end
      // Ask before anything is written there.
      const isZeroed = cluster * clusterBytes >= store.sizeBytes
      return { cluster, clusters: end - cluster, isZeroed }
    }
  }

  /** Allocates exactly `wanted` clusters in a row. */
  allocateRun(wanted: number): ClusterRun {
    let run = this.allocate(wanted)
    while (run.clusters < wanted) {
      const more = this.allocate(wanted - run.clusters)
      if (more.cluster === run.cluster + run.clusters) {
        const isZeroed = run.isZeroed && more.isZeroed
        run = { cluster: run.cluster, clusters: run.clusters + more.clusters, isZeroed }
      } else {
        this.uncount(run.cluster, run.clusters)
        run = more
      }
    }
    return run
  }

  /** Gives back clusters to which nothing has ever pointed. */
  cancel({ cluster, clusters }: ClusterRun): void {
    const { state } = this.parts
    this.uncount(cluster, clusters)
    state[STATE.cursor] = Math.min(state[STATE.cursor] as number, cluster)
    // The clusters could not be filled, perhaps because the file cannot grow. Make the next search go back.
    if (state[STATE.freedBehind] !== 0) state[STATE.freedBehind] = Number.POSITIVE_INFINITY
  }

  /**
   * Removes one reference to `cluster`. Returns whether it was the last one. A count that is already 0 was wrong, and stays.
   */
  release(cluster: number): boolean {
    const { state } = this.parts
    const index = Math.floor(cluster / this.perBlock)
    const block = this.blockAt(index)
    const count = block === 0 ? 0 : this.countIn(this.slice(block, cluster), cluster)
    if (count === 0) return false
    this.set(block, cluster, 1, count - 1)
    if (count > 1) return false
    if (cluster < (state[STATE.cursor] as number)) {
      state[STATE.freedBehind]!++
      state[STATE.lowestFreed] = Math.min(state[STATE.lowestFreed] as number, cluster)
    }
    return true
  }

  private uncount(cluster: number, clusters: number): void {
    for (let c = cluster; c < cluster + clusters; c++) {
      this.set(this.blockAt(Math.floor(c / this.perBlock)), c, 1, 0)
    }
  }

  /** At the end of the file, goes back to freed clusters if there are enough to be worth passing all in between again. */
  private goBack(): void {
    const { state, store, clusterBytes } = this.parts
    const cursor = state[STATE.cursor] as number
    const freed = state[STATE.freedBehind] as number
    if (cursor * clusterBytes < store.sizeBytes && freed !== Number.POSITIVE_INFINITY) return
    const lowest = state[STATE.lowestFreed] as number
    if (freed < Math.max(MIN_FREED_TO_GO_BACK, (cursor - lowest) / PASSED_EACH)) return
    state[STATE.cursor] = lowest
    state[STATE.freedBehind] = 0
    state[STATE.lowestFreed] = Number.POSITIVE_INFINITY
  }

  /** Makes the next search look at all clusters of the file. */
  lookEverywhere(): void {
    const { state } = this.parts
    state[STATE.cursor] = 0
    state[STATE.freedBehind] = 0
    state[STATE.lowestFreed] = Number.POSITIVE_INFINITY
  }

  private isFree(slice: Buffer, cluster: number): boolean {
    // Rule (1).
    return this.countIn(slice, cluster) === 0 && this.parts.metadataMap.kindOf(cluster) === 0
  }

  /** Returns the place of the block with this index in the file; 0 if there is none. */
  private blockAt(index: number): number {
    const { state, clusterBytes, metadataMap, store } = this.parts
    if (index >= this.tableEntries) return 0
    const slice = this.tableSlice(index)
    const at = (index * 8) % slice.length
    const block = blockOffset(slice.readUInt32BE(at), slice.readUInt32BE(at + 4))
    if (block === 0) return 0
    if (
      block % clusterBytes !== 0 ||
      !Number.isSafeInteger(block) ||
      metadataMap.kindOf(block / clusterBytes) !== KIND.refcountBlock
    ) {
      const what = `the refcount table at ${state[STATE.refcountTableOffset]} names a block at ${block}, which cannot be`
      throw new ImageError('CORRUPT', what, { path: store.path, endsWriting: true })
    }
    return block
  }

  private get tableEntries(): number {
    const { state, clusterBytes } = this.parts
    return ((state[STATE.refcountTableClusters] as number) * clusterBytes) / 8
  }

  private tableSlice(index: number): Buffer {
    const { metadata, store, storeId, sliceBytes } = this.parts
    return metadata.slice(store, storeId, this.tablePlace(index), sliceBytes)
  }

  private tablePlace(index: number): number {
    const { state, sliceBytes } = this.parts
    const table = state[STATE.refcountTableOffset] as number
    return table + Math.floor((index * 8) / sliceBytes) * sliceBytes
  }

  private slice(block: number, cluster: number): Buffer {
    const { metadata, store, storeId, sliceBytes } = this.parts
    return metadata.slice(store, storeId, this.place(block, cluster), sliceBytes)
  }

  /** Reserves the slice's space on the file system. A slice that is in the pool has it already. */
  private preallocateSlice(block: number, cluster: number): void {
    const { pool, store, sliceBytes } = this.parts
    const place = this.place(block, cluster)
    if (pool.find(place) === undefined) preallocate(store, place, sliceBytes)
  }

  private place(block: number, cluster: number): number {
    const inBlock = Math.floor((cluster % this.perBlock) / this.perSlice)
    return block + inBlock * this.parts.sliceBytes
  }

  private countIn(slice: Buffer, cluster: number): number {
    return getCount(slice, cluster % this.perSlice, this.parts.refcountOrder)
  }

  /** Sets the counts of clusters in a row whose counts are in one slice. */
  private set(block: number, cluster: number, clusters: number, count: number): void {
    const { pool, refcountOrder } = this.parts
    const load = () => this.slice(block, cluster)
    const slice = pool.edit(this.place(block, cluster), STAGE.refcounts, load)
    for (let c = cluster; c < cluster + clusters; c++) {
      setCount(slice, c % this.perSlice, refcountOrder, count)
    }
  }

  /** Makes the block with this index, and room in the table for it. Returns its place. Rule (2). */
  private addBlock(index: number): number {
    const { pool, metadataMap, store, clusterBytes } = this.parts
    if (index >= this.tableEntries) {
      this.growTable(index)
      const known = this.blockAt(index)
      if (known !== 0) return known
    }
    const cluster = this.firstWithoutMetadata(index * this.perBlock, 1)
    const at = cluster * clusterBytes
    if (at + clusterBytes > MAX_FILE_BYTES) throw new SystemError('write', EFBIG, store.path)
    if (Math.floor(cluster / this.perBlock) !== index) {
      const what = `clusters from ${index * this.perBlock * clusterBytes} on are in use and not counted`
      throw new ImageError('CORRUPT', what, { path: store.path, endsWriting: true })
    }
    pool.forget(at, clusterBytes)
    const block = Buffer.alloc(clusterBytes)
    setCount(block, cluster % this.perBlock, this.parts.refcountOrder, 1)
    store.write(block, 0, clusterBytes, at)
    const place = this.tablePlace(index)
    const load = () => preallocated(store, place, this.tableSlice(index))
    const entry = pool.edit(place, STAGE.refcountTable, load)
    putOffset(entry, (index * 8) % entry.length, at)
    metadataMap.change(cluster, 1, KIND.refcountBlock)
    return at
  }

  /** Returns the first of `clusters` clusters in a row, from `cluster` on, in which no known metadata lives. */
  private firstWithoutMetadata(cluster: number, clusters: number): number {
    for (let first = cluster, c = cluster; ; c++) {
      if (this.parts.metadataMap.kindOf(c) !== 0) first = c + 1
      else if (c - first + 1 === clusters) return first
    }
  }

  /**
   * Makes a larger table, with an entry for the block with this index. It lies past all clusters that the old one can count,
   * with its own blocks. Rule (3).
   */
  private growTable(index: number): void {
    const { pool, metadataMap, freed, state, store, clusterBytes, refcountOrder } = this.parts
    const oldEntries = this.tableEntries
    const oldOffset = state[STATE.refcountTableOffset] as number
    const oldClusters = state[STATE.refcountTableClusters] as number
    const wanted = Math.max(index + 1, Math.ceil(oldEntries * 1.5)) + 2
    let tableClusters = Math.ceil((wanted * 8) / clusterBytes)
    const first = this.firstWithoutMetadata(oldEntries * this.perBlock, 2 * tableClusters + 2)
    const firstBlock = Math.floor(first / this.perBlock)
    let blocks = 1
    // The blocks count themselves and the table, and the table has entries for the blocks.
    for (;;) {
      const end = first + blocks + tableClusters
      const needed = Math.floor((end - 1) / this.perBlock) - firstBlock + 1
      const entries = Math.max(wanted, firstBlock + blocks)
      const clusters = Math.ceil((entries * 8) / clusterBytes)
      if (needed <= blocks && clusters <= tableClusters) break
      blocks = Math.max(blocks, needed)
      tableClusters = Math.max(tableClusters, clusters)
    }
    const end = first + blocks + tableClusters
    if (
      tableClusters * clusterBytes > MAX_REFCOUNT_TABLE_BYTES ||
      end * clusterBytes > MAX_FILE_BYTES
    ) {
      throw new SystemError('write', EFBIG, store.path)
    }
    const table = Buffer.alloc(tableClusters * clusterBytes)
    for (let entry = 0; entry < oldEntries; entry++) {
      const slice = this.tableSlice(entry)
      slice.copy(table, entry * 8, (entry * 8) % slice.length, ((entry * 8) % slice.length) + 8)
    }
    const counts = Buffer.alloc(blocks * clusterBytes)
    for (let c = first; c < end; c++) {
      setCount(counts, c - firstBlock * this.perBlock, refcountOrder, 1)
    }
    for (let i = 0; i < blocks; i++)
      putOffset(table, (firstBlock + i) * 8, (first + i) * clusterBytes)
    pool.forget(first * clusterBytes, (end - first) * clusterBytes)
    store.write(counts, 0, counts.length, first * clusterBytes)
    const offset = (first + blocks) * clusterBytes
    store.write(table, 0, table.length, offset)
    orEndWriting(() => {
      store.sync()
      writeRefcountTable(store, offset, tableClusters)
      store.sync()
    })
    pool.forget(oldOffset, oldClusters * clusterBytes)
    metadataMap.change(first, blocks, KIND.refcountBlock)
    metadataMap.change(first + blocks, tableClusters, KIND.refcountTable)
    metadataMap.change(oldOffset / clusterBytes, oldClusters, 0)
    state[STATE.refcountTableOffset] = offset
    state[STATE.refcountTableClusters] = tableClusters
    freed.put(oldOffset / clusterBytes, oldClusters)
  }
}

function putOffset(table: Buffer, at: number, offset: number): void {
  table.writeUInt32BE(Math.floor(offset / 2 ** 32), at)
  table.writeUInt32BE(offset % 2 ** 32, at + 4)
}
