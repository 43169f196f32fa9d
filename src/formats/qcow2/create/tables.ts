/**
 * The L1 table and the L2 tables of an image that is filled in ascending order (QEMU docs/interop/qcow2.rst, "Cluster mapping").
 * An L2 table takes its cluster when its first entry is set, and is written when the next one begins. So one is in memory.
 */
import type { WritableStore } from '../../../io/store.js'
import { COPIED, putEntry, ZERO_FLAG } from '../words.js'
import type { FreshClusters } from './clusters.js'
import { packedEntry } from '../packed-entry.js'

/** The states of the subclusters of an extended L2 entry, 32 bits each. */
const SUBCLUSTERS = { none: 0, all: 0xffffffff } as const

export interface TableShape {
  readonly clusterBits: number
  readonly isExtended: boolean
  readonly l1Entries: number
}

export class FreshTables {
  /** How many bytes of the disk an L2 table maps. */
  readonly coverageBytes: number
  readonly l1: Buffer
  private readonly clusterBytes: number
  private readonly entryBytes: number
  private readonly table: Buffer
  /** The index of the table in `table`, and its place; -1 for none. */
  private current = -1
  private at = -1

  constructor(
    private readonly store: WritableStore,
    private readonly clusters: FreshClusters,
    private readonly shape: TableShape,
  ) {
    this.clusterBytes = 2 ** shape.clusterBits
    this.entryBytes = shape.isExtended ? 16 : 8
    this.coverageBytes = (this.clusterBytes / this.entryBytes) * this.clusterBytes
    this.l1 = Buffer.alloc(shape.l1Entries * 8)
    this.table = Buffer.alloc(this.clusterBytes)
  }

  /** Prepares the table of the cluster at `offset` of the disk. Call it before the cluster's own space is taken. */
  open(offset: number): void {
    const index = Math.floor(offset / this.coverageBytes)
    if (index === this.current) return
    this.flush()
    this.at = this.clusters.take(1).at
    this.current = index
    putEntry(this.l1, index * 8, this.at, COPIED, 0)
  }

  /** Maps `count` clusters of the disk to those from `host` on, within the open table. */
  mapData(offset: number, host: number, count: number): void {
    this.map(offset, host, count, 0, SUBCLUSTERS.all, SUBCLUSTERS.none)
  }

  /**
   * The same for clusters that have their space and no data yet. With subclusters they read from the backing file.
   * @param isZero whether they read as zeros, whatever their space has
   */
  mapReserved(offset: number, host: number, count: number, isZero: boolean): void {
    const flag = isZero && !this.shape.isExtended ? ZERO_FLAG : 0
    this.map(offset, host, count, flag, SUBCLUSTERS.none, isZero ? SUBCLUSTERS.all : 0)
  }

  /** Makes `count` clusters of the open table read as zeros. They take no space. */
  mapZeros(offset: number, count: number): void {
    const first = this.entryAt(offset)
    for (let i = 0; i < count; i++) {
      const at = first + i * this.entryBytes
      if (this.shape.isExtended) this.table.writeUInt32BE(SUBCLUSTERS.all, at + 8)
      else this.table.writeUInt32BE(ZERO_FLAG, at + 4)
    }
  }

  /** Maps one cluster to `bytes` compressed bytes at `at` of the file. */
  mapPacked(offset: number, at: number, bytes: number): void {
    const { high, low } = packedEntry(at, bytes, this.shape.clusterBits)
    const entry = this.entryAt(offset)
    this.table.writeUInt32BE(high, entry)
    this.table.writeUInt32BE(low, entry + 4)
  }

  /** Writes the open table. */
  flush(): void {
    if (this.current < 0) return
    this.store.write(this.table, 0, this.table.length, this.at)
    this.table.fill(0)
    this.current = -1
  }

  private map(
    offset: number,
    host: number,
    count: number,
    lowFlags: number,
    allocated: number,
    zeros: number,
  ): void {
    let at = this.entryAt(offset)
    for (let i = 0; i < count; i++) {
      putEntry(this.table, at, host + i * this.clusterBytes, COPIED, lowFlags)
      if (this.shape.isExtended) {
        this.table.writeUInt32BE(zeros, at + 8)
        this.table.writeUInt32BE(allocated, at + 12)
      }
      at += this.entryBytes
    }
  }

  private entryAt(offset: number): number {
    return ((offset % this.coverageBytes) / this.clusterBytes) * this.entryBytes
  }
}
