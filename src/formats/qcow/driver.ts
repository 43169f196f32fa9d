/**
 * Finds the bytes of a qcow disk in the two-level table (QEMU block/qcow.c; libyal libqcow's description of the format).
 *
 * Clusters may begin at any sector. So this code decides whether the file ends within one; the engine's rounding to units
 * could not. An L1 entry that names exactly the end of the file was written by a program that stopped before it wrote the
 * table: it names nothing yet.
 */
import type { ClusterCache } from '../../cache/cluster-cache.js'
import type { MetadataCache } from '../../cache/metadata-cache.js'
import { SLICE_BYTES } from '../../cache/table-pool.js'
import { ImageError } from '../../errors.js'
import { holesReadAsZeros, type Store } from '../../io/store.js'
import type { Extent, FormatDriver } from '../driver.js'
import { packedExtent } from '../packed-cluster.js'
import { clusterBytes, coverageBytes, ENTRY_BYTES, type QcowHeader, tableBytes } from './header.js'
import { DAMAGED, PACKED, packedAt, readEntry, readWord } from './words.js'
import { SECTOR_BYTES } from '../../sector.js'
import { damageOf } from '../damage.js'

export interface QcowParts {
  readonly header: QcowHeader
  /** The image's file, for tables and compressed clusters. */
  readonly store: Store
  /** The same file, for data clusters; it decrypts encrypted ones. */
  readonly dataStore: Store
  /** Tells stores apart in the caches, 0 to 511. */
  readonly storeId: number
  readonly metadata: MetadataCache
  readonly clusters: ClusterCache
}

export class QcowDriver implements FormatDriver {
  readonly sizeBytes: number
  readonly unitBytes: number
  /** How many bytes of the disk one L2 table maps. */
  readonly coverage: number
  readonly tableBytes: number
  private readonly l1End: number
  /** The size of the file, for one lookup. */
  private fileBytes = 0

  constructor(private readonly parts: QcowParts) {
    const { header } = parts
    this.sizeBytes = header.sizeBytes
    this.unitBytes = clusterBytes(header)
    this.coverage = coverageBytes(header)
    this.tableBytes = tableBytes(header)
    this.l1End = header.l1Offset + header.l1Entries * ENTRY_BYTES
  }

  lookup(offset: number, length: number): Extent {
    this.fileBytes = this.parts.store.sizeBytes
    const index = Math.floor(offset / this.coverage)
    const inTable = offset - index * this.coverage
    const table = this.tableOf(index)
    if (table !== 0) return this.clusters(table, inTable, length)
    const unallocated = this.unallocatedTables(index, inTable + length) * this.coverage - inTable
    return { kind: 'parent', length: Math.min(length, unallocated) }
  }

  /** Returns the place of the L2 table of L1 entry `index` in the file; 0 if there is none. */
  l2Table(index: number): number {
    this.fileBytes = this.parts.store.sizeBytes
    return this.tableOf(index)
  }

  private tableOf(index: number): number {
    const place = this.l1SliceOf(index)
    const at = this.parts.header.l1Offset + index * ENTRY_BYTES - place.at
    const table = readWord(this.slice(place.at, place.length), at)
    if (table === 0) return 0
    if (table % SECTOR_BYTES !== 0) {
      throw this.damage(`the L1 entry ${index} names an L2 table at ${table}, no sector`)
    }
    if (table < this.fileBytes) return table
    if (table === Math.ceil(this.fileBytes / this.unitBytes) * this.unitBytes) return 0
    const what = `the L1 entry ${index} names an L2 table at ${table}`
    throw this.damage(`${what}, beyond the end of the file`)
  }

  /**
   * Returns the slice of the file that contains L1 entry `index`. Besides the table it may contain only bytes of the table's
   * first sector, where no cluster and no other table can be.
   */
  l1SliceOf(index: number): { at: number; length: number } {
    const { l1Offset } = this.parts.header
    const entryAt = l1Offset + index * ENTRY_BYTES
    const first = l1Offset - (l1Offset % SECTOR_BYTES)
    const at = Math.max(first, entryAt - (entryAt % SLICE_BYTES))
    return { at, length: Math.min(SLICE_BYTES, this.l1End - at) }
  }

  /** Returns the slice of the L2 table at `table` that contains entry `index`. */
  l2SliceOf(table: number, index: number): { at: number; length: number } {
    const byte = index * ENTRY_BYTES
    const inTable = byte - (byte % SLICE_BYTES)
    return { at: table + inTable, length: Math.min(SLICE_BYTES, this.tableBytes - inTable) }
  }

  /** Reads a slice. Throws ImageError. */
  slice(at: number, length: number): Buffer {
    const { metadata, store, storeId } = this.parts
    return metadata.slice(store, storeId, at, length)
  }

  /** Returns how many L1 entries from `index` on name no table, within `bytes` bytes of the disk. */
  private unallocatedTables(index: number, bytes: number): number {
    const wanted = Math.min(Math.ceil(bytes / this.coverage), this.parts.header.l1Entries - index)
    let count = 1
    while (count < wanted && this.isUnallocated(index + count)) count++
    return count
  }

  /** Reports whether the entry names no table. False also for a damaged entry: the read that gets there reports it. */
  private isUnallocated(index: number): boolean {
    try {
      return this.tableOf(index) === 0
    } catch (error) {
      if (error instanceof ImageError) return false
      throw error
    }
  }

  /** Returns the run of clusters that begins at byte `inTable` of the range that the L2 table at `table` maps. */
  private clusters(table: number, inTable: number, length: number): Extent {
    const { unitBytes } = this
    const inCluster = inTable % unitBytes
    const from = Math.floor(inTable / unitBytes) * ENTRY_BYTES
    const { at, length: sliceBytes } = this.l2SliceOf(table, from / ENTRY_BYTES)
    const slice = this.slice(at, sliceBytes)
    const first = readEntry(slice, from % SLICE_BYTES, this.fileBytes)
    if (first === PACKED) return this.packed(slice, from % SLICE_BYTES, inCluster, length)
    if (first === DAMAGED) {
      const host = readWord(slice, from % SLICE_BYTES)
      throw this.damage(`an L2 entry maps a cluster at ${host}, ${whyDamaged(host)}`)
    }
    const wanted = from + Math.ceil((inCluster + length) / unitBytes) * ENTRY_BYTES
    const to = this.runEnd(slice, table, from, Math.min(wanted, this.tableBytes), first)
    const found = Math.min(length, ((to - from) / ENTRY_BYTES) * unitBytes - inCluster)
    if (first >= 0) return this.data(first + inCluster, found)
    return { kind: 'parent', length: found }
  }

  /**
   * Returns where in the table, up to `to`, the run ends that begins with `first` at `from`. Damage further on also ends it: the
   * read that gets there reports it, after the good bytes are delivered.
   */
  private runEnd(slice: Buffer, table: number, from: number, to: number, first: number): number {
    const step = first >= 0 ? this.unitBytes : 0
    const { fileBytes } = this
    let expected = first
    for (let at = from + ENTRY_BYTES; at < to; at += ENTRY_BYTES) {
      const inSlice = at % SLICE_BYTES
      if (inSlice === 0) {
        const next = this.nextSlice(table, at)
        if (next === undefined) return at
        slice = next
      }
      expected += step
      if (readEntry(slice, inSlice, fileBytes) !== expected) return at
    }
    return to
  }

  private nextSlice(table: number, at: number): Buffer | undefined {
    try {
      const place = this.l2SliceOf(table, at / ENTRY_BYTES)
      return this.slice(place.at, place.length)
    } catch (error) {
      if (error instanceof ImageError) return undefined
      throw error
    }
  }

  /** Returns the extent of data at `at`. The file may end within its last cluster, whose rest reads as zeros. */
  private data(at: number, length: number): Extent {
    const { dataStore: store } = this.parts
    // A cipher store handles the missing part itself.
    if (!holesReadAsZeros(store)) return { kind: 'data', length, store, at }
    const inFile = this.fileBytes - at
    if (inFile <= 0) return { kind: 'zero', length }
    return { kind: 'data', length: Math.min(length, inFile), store, at }
  }

  /** Returns the extent of a compressed cluster: it begins at any byte of the file; its entry gives its length. */
  private packed(slice: Buffer, inSlice: number, inCluster: number, length: number): Extent {
    const high = slice.readUInt32BE(inSlice)
    const low = slice.readUInt32BE(inSlice + 4)
    const { at, packedBytes } = packedAt(high, low, this.parts.header.clusterBits)
    const { clusters, storeId, store } = this.parts
    const cluster = {
      format: 'qcow',
      store,
      storeId,
      clusters,
      at,
      packedBytes,
      compression: 'zlib' as const,
      clusterBytes: this.unitBytes,
    }
    return packedExtent(cluster, inCluster, length)
  }

  private damage(message: string): ImageError {
    return damageOf(this.parts.store.path, message)
  }
}

const whyDamaged = (host: number): string =>
  host % SECTOR_BYTES === 0 ? 'beyond the end of the file' : 'which is no sector'
