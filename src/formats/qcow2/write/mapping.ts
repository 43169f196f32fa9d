/**
 * The L1 and L2 tables of the disk that is written. The rules are those of writer.ts:
 *
 *  (2) A new L2 table is whole in the file before the L1 entry names it.
 *  (4) A table changes only where the metadata map has one of its kind. An entry of data that leads to metadata is damage: what it
 *      names is neither written nor freed.
 *  (5) A table to which a snapshot may point is copied before it changes; a cluster without COPIED is never written in place.
 *
 * The caller holds the exclusive side of the disk's lock, except for `tableOf` and `ownHost`, which change nothing.
 */
import { preallocated } from '../../preallocate.js'
import { KIND } from '../metadata-map.js'
import { packedLength, packedOffset } from '../packed-entry.js'
import { COMPRESSED, COPIED, isCopied, putEntry } from '../words.js'
import { damage, type WriteContext } from './parts.js'
import { STAGE } from './stages.js'

/** An L2 entry, and the place on the disk that it maps. */
export interface Place {
  /** The place of the L2 table's slice in the file, and of the entry in the slice. */
  readonly sliceAt: number
  readonly inSlice: number
  /** The start of its cluster on the disk. */
  readonly offset: number
}

export class Mapping {
  private readonly unitBytes: number

  constructor(private readonly context: WriteContext) {
    this.unitBytes = context.driver.unitBytes
  }

  /** Returns the L2 table that maps `offset` if its entries may change in place; else 0. */
  tableOf(offset: number): number {
    const { driver } = this.context
    const l1Index = Math.floor(offset / driver.coverage)
    const table = driver.l2Table(l1Index)
    if (table === 0) return 0
    const inSlice = (l1Index * 8) % driver.sliceBytes
    return isCopied(driver.l1Slice(l1Index), inSlice) ? table : 0
  }

  /** Returns the cluster of the L2 entry at `at` if it is a normal one to which nothing else points; else -1. */
  ownHost(slice: Buffer, at: number, offset: number): number {
    const { driver, metadataMap } = this.context
    const high = slice.readUInt32BE(at)
    if (high & COMPRESSED || !(high & COPIED)) return -1
    const low = slice.readUInt32BE(at + 4)
    const host = driver.checkedHost(high, low)
    if (!driver.isAllocated(high, offset, host)) return -1
    if (!driver.external && metadataMap.kindOf(host / this.unitBytes) !== 0) {
      const what = `an L2 entry maps the disk to ${host}, where the image has a table`
      throw damage(this.context, what)
    }
    return host
  }

  /** Returns the entry that maps `offset`, in a table that may be changed. */
  ownPlace(offset: number): Place {
    const { driver } = this.context
    const table = this.ownTable(Math.floor(offset / driver.coverage))
    const entryAt = Math.floor((offset % driver.coverage) / this.unitBytes) * driver.entryBytes
    const inSlice = entryAt % driver.sliceBytes
    return {
      sliceAt: table + entryAt - inSlice,
      inSlice,
      offset: offset - (offset % this.unitBytes),
    }
  }

  /** Returns the L2 table of an L1 entry, to which nothing else points. Makes a new one or a copy if needed. Rule (5). */
  private ownTable(l1Index: number): number {
    const { driver, store, metadataMap, pool, refcounts, freed } = this.context
    const { unitBytes } = this
    const old = driver.l2Table(l1Index)
    const inSlice = (l1Index * 8) % driver.sliceBytes
    if (old !== 0 && isCopied(driver.l1Slice(l1Index), inSlice)) {
      if (metadataMap.kindOf(old / unitBytes) === KIND.l2) return old
      const what = `an L2 table at ${old} lies where the image has something else`
      throw damage(this.context, what)
    }
    const table = Buffer.alloc(unitBytes)
    for (let at = 0; old !== 0 && at < unitBytes; at += driver.sliceBytes) {
      driver.slice(old + at).copy(table, at)
    }
    const run = refcounts.allocate(1)
    const place = run.cluster * unitBytes
    try {
      pool.forget(place, unitBytes)
      store.write(table, 0, unitBytes, place) // rule (2)
      const sliceAt = driver.l1SliceAt(l1Index)
      const load = () => preallocated(store, sliceAt, driver.l1Slice(l1Index))
      putEntry(pool.edit(sliceAt, STAGE.links, load), inSlice, place, COPIED, 0)
    } catch (error) {
      refcounts.cancel(run)
      throw error
    }
    metadataMap.change(run.cluster, 1, KIND.l2)
    if (old !== 0) {
      metadataMap.change(old / unitBytes, 1, KIND.snapshotL2)
      freed.put(old / unitBytes, 1)
    }
    return place
  }

  /** Returns the slice at `sliceAt` of an L2 table of `ownPlace`, in the pool, to be changed. */
  edit(sliceAt: number): Buffer {
    const { store, driver, pool } = this.context
    const load = () => preallocated(store, sliceAt, driver.slice(sliceAt))
    return pool.edit(sliceAt, STAGE.links, load)
  }

  /** Queues the clusters of the L2 entry at `at`: they lose a reference after a flush has removed the entry. */
  release(slice: Buffer, at: number): void {
    const { driver, header } = this.context
    if (driver.external) return
    const high = slice.readUInt32BE(at)
    const low = slice.readUInt32BE(at + 4)
    if (high & COMPRESSED) {
      const from = packedOffset(high, low, header.clusterBits)
      const to = from + packedLength(high, low, header.clusterBits)
      const first = Math.floor(from / this.unitBytes)
      const last = Math.floor((to - 1) / this.unitBytes)
      this.free(first, last - first + 1)
      return
    }
    const host = driver.checkedHost(high, low)
    if (host !== 0) this.free(host / this.unitBytes, 1)
  }

  /** Queues clusters. Rule (4): an entry of data that names a table is damage, so never free that table. */
  private free(cluster: number, clusters: number): void {
    const { metadataMap, freed } = this.context
    for (let c = cluster; c < cluster + clusters; c++) {
      if (metadataMap.kindOf(c) === 0) continue
      const what = `an L2 entry maps the disk to ${c * this.unitBytes}, where the image has a table`
      throw damage(this.context, what)
    }
    freed.put(cluster, clusters)
  }
}
