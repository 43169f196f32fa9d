/**
 * Finds the bytes of a qcow2 disk in the two-level table (QEMU docs/interop/qcow2.rst, "Cluster mapping"). A driver reads one
 * L1 table: the disk's, or a snapshot's.
 *
 * An entry has 64 bits and is read as two halves. A host offset has 56 bits; one that does not fit into 53 lies past the end
 * of any file and is damage.
 */
import type { ClusterCache } from '../../cache/cluster-cache.js'
import type { MetadataCache } from '../../cache/metadata-cache.js'
import { SLICE_BYTES } from '../../cache/table-pool.js'
import { ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import type { Extent, FormatDriver } from '../driver.js'
import { packedExtent } from '../packed-cluster.js'
import { MAX_L1_BYTES } from '../limits.js'
import {
  clusterBytes,
  INCOMPATIBLE,
  isExtendedL2,
  l2CoverageBytes,
  l2EntryBytes,
  type Qcow2Header,
} from './header.js'
import { packedLength, packedOffset } from './packed-entry.js'
import { COMPRESSED, COPIED, hostOffset, ZERO_FLAG } from './words.js'
import { damageOf } from '../damage.js'

export interface Qcow2Parts {
  readonly header: Qcow2Header
  readonly store: Store
  /** Contains the data clusters: the external data file, or the image itself; it decrypts encrypted ones. */
  readonly dataStore: Store
  /** Tells stores apart in the caches, 0 to 511. */
  readonly storeId: number
  readonly metadata: MetadataCache
  readonly clusters: ClusterCache
}

export const SUBCLUSTERS = 32

/** The kind of a run of clusters: neighbours of one kind become one extent. */
type RunKind = 'data' | 'zero' | 'parent'

export class Qcow2Driver implements FormatDriver {
  readonly unitBytes: number
  /** Bytes of the disk that one L2 table maps. */
  readonly coverage: number
  readonly entryBytes: number
  readonly sliceBytes: number
  readonly extended: boolean
  readonly external: boolean
  private disk: { l1Offset: number; l1Entries: number; sizeBytes: number }
  /** The kind and the host offset of the last decoded entry. Fields, to avoid an object on the data path. */
  private kind: RunKind | 'packed' = 'parent'
  private host = 0

  /**
   * @param l1 the L1 table: its offset in the file and the number of its entries
   * @param sizeBytes the size of the disk that the table maps
   * @throws ImageError if the L1 table is impossible
   */
  constructor(
    private readonly parts: Qcow2Parts,
    l1: { offset: number; entries: number },
    sizeBytes: number,
  ) {
    const { header, store } = parts
    this.unitBytes = clusterBytes(header)
    if (l1.offset % this.unitBytes !== 0 || l1.entries * 8 > MAX_L1_BYTES) {
      const what = `an L1 table of ${l1.entries} entries at ${l1.offset} is impossible`
      throw new ImageError('CORRUPT', what, { path: store.path })
    }
    this.disk = { l1Offset: l1.offset, l1Entries: l1.entries, sizeBytes }
    this.coverage = l2CoverageBytes(header)
    this.entryBytes = l2EntryBytes(header)
    this.sliceBytes = Math.min(SLICE_BYTES, this.unitBytes)
    this.extended = isExtendedL2(header)
    this.external = (header.incompatible & INCOMPATIBLE.externalData) !== 0n
  }

  get sizeBytes(): number {
    return this.disk.sizeBytes
  }

  /** Changes the L1 table and the size, for a disk that has grown. */
  moveTo(l1: { offset: number; entries: number }, sizeBytes: number): void {
    this.disk = { l1Offset: l1.offset, l1Entries: l1.entries, sizeBytes }
  }

  lookup(offset: number, length: number): Extent {
    const l1Index = Math.floor(offset / this.coverage)
    const inTable = offset - l1Index * this.coverage
    const table = this.l2Table(l1Index)
    if (table === 0) {
      const unallocated =
        this.unallocatedTables(l1Index, inTable + length) * this.coverage - inTable
      return { kind: 'parent', length: Math.min(length, unallocated) }
    }
    const entryAt = Math.floor(inTable / this.unitBytes) * this.entryBytes
    const inSlice = entryAt % this.sliceBytes
    const slice = this.slice(table + entryAt - inSlice)
    const inCluster = offset % this.unitBytes
    return this.extended
      ? this.subclusters(slice, inSlice, inCluster, offset, length)
      : this.standardClusters(slice, inSlice, inCluster, offset, length)
  }

  /** Returns the slice of an L2 table at `at` of the file. */
  slice(at: number): Buffer {
    const { metadata, store, storeId } = this.parts
    return metadata.slice(store, storeId, at, this.sliceBytes)
  }

  /** Returns the place of the L2 table of an L1 entry in the file; 0 if there is none. */
  l2Table(l1Index: number): number {
    // The L1 table of a snapshot may be shorter than its disk: the rest was never written.
    if (l1Index >= this.disk.l1Entries) return 0
    const slice = this.l1Slice(l1Index)
    const at = (l1Index * 8) % this.sliceBytes
    const high = slice.readUInt32BE(at)
    const low = slice.readUInt32BE(at + 4)
    const table = hostOffset(high, low)
    if (table === 0) return 0
    if (table % this.unitBytes !== 0 || !Number.isSafeInteger(table)) {
      throw this.damage(`the L1 entry ${l1Index} names an L2 table at ${table}, which cannot be`)
    }
    return table
  }

  /** Returns the place in the file of the slice of the L1 table that contains entry `l1Index`. */
  l1SliceAt(l1Index: number): number {
    return this.disk.l1Offset + Math.floor((l1Index * 8) / this.sliceBytes) * this.sliceBytes
  }

  l1Slice(l1Index: number): Buffer {
    const { store, storeId, metadata } = this.parts
    const at = this.l1SliceAt(l1Index)
    const { l1Offset, l1Entries } = this.disk
    // The file may end with the last entry of the L1 table, within the slice.
    const length = Math.min(this.sliceBytes, l1Offset + l1Entries * 8 - at)
    return metadata.slice(store, storeId, at, length)
  }

  /** Returns how many L1 entries from `l1Index` on name no table, within `bytes` bytes of the disk. */
  private unallocatedTables(l1Index: number, bytes: number): number {
    const wanted = Math.ceil(bytes / this.coverage)
    const listed = Math.min(wanted, this.disk.l1Entries - l1Index)
    let count = 1
    while (count < listed && this.isUnallocated(l1Index + count)) count++
    // Past the end of the table nothing is allocated, however large a snapshot says that its disk is.
    return count < listed ? count : wanted
  }

  /** Reports whether the L1 entry names no table. False also for a damaged entry: the read that gets there reports it. */
  private isUnallocated(l1Index: number): boolean {
    try {
      return this.l2Table(l1Index) === 0
    } catch (error) {
      if (error instanceof ImageError) return false
      throw error
    }
  }

  private standardClusters(
    slice: Buffer,
    inSlice: number,
    inCluster: number,
    offset: number,
    length: number,
  ): Extent {
    this.decodeStandard(slice, inSlice, offset)
    if (this.kind === 'packed') return this.packed(slice, inSlice, inCluster, length)
    const { kind, host } = this
    let end = this.unitBytes - inCluster
    for (let at = inSlice + 8; end < length && at < slice.length; at += 8, end += this.unitBytes) {
      // Damage further on is reported by the read that gets there, after the good bytes are delivered.
      if (!this.continues(slice, at, offset + end, kind, host + inCluster + end)) break
    }
    return this.extent(kind, host + inCluster, Math.min(length, end))
  }

  /** Reports whether the entry at `at` has the same `kind` and, for data, the host offset `expected`. */
  private continues(
    slice: Buffer,
    at: number,
    offset: number,
    kind: RunKind,
    expected: number,
  ): boolean {
    try {
      this.decodeStandard(slice, at, offset)
    } catch (error) {
      if (error instanceof ImageError) return false
      throw error
    }
    return this.kind === kind && (kind !== 'data' || this.host === expected)
  }

  /** Sets `kind` and `host` from the L2 entry at `at` of `slice`, which maps the disk's `offset`. */
  private decodeStandard(slice: Buffer, at: number, offset: number): void {
    const high = slice.readUInt32BE(at)
    const low = slice.readUInt32BE(at + 4)
    if (high & COMPRESSED) {
      this.kind = 'packed'
      return
    }
    if (low & ZERO_FLAG) {
      if (this.parts.header.version === 2) {
        throw this.damage('an L2 entry has the zero flag, which version 2 does not know')
      }
      this.checkedHost(high, low)
      this.kind = 'zero'
      return
    }
    this.host = this.checkedHost(high, low)
    this.kind = this.isAllocated(high, offset, this.host) ? 'data' : 'parent'
  }

  /** Reports whether `host` is a place of data: 0 means "not allocated", except in an external data file. */
  isAllocated(high: number, offset: number, host: number): boolean {
    if (!this.external) return host !== 0
    if (host === 0 && (high & COPIED) === 0) return false
    if (host !== offset - (offset % this.unitBytes)) {
      throw this.damage(`an L2 entry maps another place of the data file, ${host}`)
    }
    return true
  }

  /** Returns the host offset of an L2 entry that is not compressed. Throws ImageError if it is impossible. */
  checkedHost(high: number, low: number): number {
    const host = hostOffset(high, low)
    if (host % this.unitBytes !== 0 || !Number.isSafeInteger(host)) {
      throw this.damage(`an L2 entry maps a cluster at ${host}, which is not aligned`)
    }
    return host
  }

  private extent(kind: RunKind, at: number, length: number): Extent {
    if (kind !== 'data') return { kind, length }
    return { kind, length, store: this.parts.dataStore, at }
  }

  /**
   * Returns the extent of a cluster with an extended entry. It consists of runs of subclusters, which the bitmap after the
   * entry calls allocated, zero or unallocated ("Extended L2 Entries"). A run that reaches the cluster's end may go on in the
   * next cluster.
   */
  private subclusters(
    slice: Buffer,
    inSlice: number,
    inCluster: number,
    offset: number,
    length: number,
  ): Extent {
    const high = slice.readUInt32BE(inSlice)
    if (high & COMPRESSED) return this.packed(slice, inSlice, inCluster, length)
    const subclusterBytes = this.unitBytes / SUBCLUSTERS
    const first = Math.floor(inCluster / subclusterBytes)
    const kind = this.decodeSubcluster(slice, inSlice, first, offset)
    const host = this.host
    let end = (first + 1) * subclusterBytes - inCluster
    let at = inSlice
    let subcluster = first
    while (end < length) {
      if (++subcluster === SUBCLUSTERS) {
        subcluster = 0
        at += this.entryBytes
        if (at >= slice.length || slice.readUInt32BE(at) & COMPRESSED) break
      }
      if (
        !this.continuesSubcluster(slice, at, subcluster, offset + end, kind, host + inCluster + end)
      ) {
        break
      }
      end += subclusterBytes
    }
    return this.extent(kind, host + inCluster, Math.min(length, end))
  }

  private continuesSubcluster(
    slice: Buffer,
    at: number,
    subcluster: number,
    offset: number,
    kind: RunKind,
    expected: number,
  ): boolean {
    try {
      if (this.decodeSubcluster(slice, at, subcluster, offset) !== kind) return false
    } catch (error) {
      if (error instanceof ImageError) return false
      throw error
    }
    return kind !== 'data' || this.host + (offset % this.unitBytes) === expected
  }

  /** Returns the kind of one subcluster; sets `host` to the place of its cluster. */
  private decodeSubcluster(slice: Buffer, at: number, subcluster: number, offset: number): RunKind {
    const high = slice.readUInt32BE(at)
    const low = slice.readUInt32BE(at + 4)
    const isZero = (slice.readUInt32BE(at + 8) >>> subcluster) & 1
    const isAllocated = (slice.readUInt32BE(at + 12) >>> subcluster) & 1
    this.host = this.checkedHost(high, low)
    if (isZero && isAllocated) {
      throw this.damage(`subcluster ${subcluster} is marked both allocated and zero`)
    }
    if (isZero) return 'zero'
    if (!isAllocated) return 'parent'
    if (!this.isAllocated(high, offset, this.host)) {
      throw this.damage(`subcluster ${subcluster} is marked allocated in no cluster`)
    }
    return 'data'
  }

  /** Returns the extent of a compressed cluster. */
  private packed(slice: Buffer, inSlice: number, inCluster: number, length: number): Extent {
    if (this.external) throw this.damage('a compressed cluster with an external data file')
    const { header } = this.parts
    const { clusterBits, compression } = header
    const high = slice.readUInt32BE(inSlice)
    const low = slice.readUInt32BE(inSlice + 4)
    const { clusters, storeId, store } = this.parts
    const cluster = {
      format: 'qcow2',
      store,
      storeId,
      clusters,
      at: packedOffset(high, low, clusterBits),
      packedBytes: packedLength(high, low, clusterBits),
      compression,
      clusterBytes: this.unitBytes,
    }
    return packedExtent(cluster, inCluster, length)
  }

  damage(message: string): ImageError {
    return damageOf(this.parts.store.path, message)
  }
}
