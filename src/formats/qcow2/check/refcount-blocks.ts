/** Reads the reference counts of the image (QEMU docs/interop/qcow2.rst, "Reference counts"). */
import { getCount, setCount } from '../refcount-bits.js'
import { blockOffset, REFCOUNT_TABLE_RESERVED_LOW } from '../words.js'
import type { Qcow2Structure } from './structure.js'

/** The most counts that are read at a time. */
const MAX_SLICE_COUNTS = 2 ** 20

export class RefcountBlocks {
  /** Counts in a block. */
  readonly perBlock: number
  /** Entries of the table. */
  readonly entries: number
  /** Counts in a slice, which is the part of a block that is read or written at a time. */
  readonly perSlice: number
  readonly sliceBytes: number
  private readonly table: Buffer
  private readonly order: number
  private readonly cached: Buffer
  private cachedSlice = -1

  constructor(private readonly image: Qcow2Structure) {
    const { header, clusterBytes, store } = image
    this.order = header.refcountOrder
    this.perBlock = (clusterBytes * 8) / 2 ** this.order
    this.perSlice = Math.min(this.perBlock, MAX_SLICE_COUNTS)
    this.sliceBytes = (this.perSlice * 2 ** this.order) / 8
    const tableBytes = header.refcountTableClusters * clusterBytes
    this.entries = tableBytes / 8
    this.table = Buffer.alloc(tableBytes)
    store.read(this.table, 0, tableBytes, header.refcountTableOffset)
    this.cached = Buffer.alloc(this.sliceBytes)
  }

  /** Returns the place of the block according to the table; 0 if there is none. Not checked. */
  offsetOf(block: number): number {
    return blockOffset(this.table.readUInt32BE(block * 8), this.table.readUInt32BE(block * 8 + 4))
  }

  hasReservedBits(block: number): boolean {
    return (this.table.readUInt32BE(block * 8 + 4) & REFCOUNT_TABLE_RESERVED_LOW) !== 0
  }

  /**
   * Reports whether the table names an impossible place. Then the counts are unknown. (Past the end of the file they are 0.)
   */
  isUnreadable(block: number): boolean {
    const at = this.offsetOf(block)
    return at % this.image.clusterBytes !== 0 || at >= 2 ** 63
  }

  /** Reports whether the count of a cluster is unknown. */
  isUnknown(cluster: number): boolean {
    const block = Math.floor(cluster / this.perBlock)
    return block < this.entries && this.isUnreadable(block)
  }

  /** Returns the next block from `block` on that the table names; `entries` if there is none. */
  next(block: number): number {
    let i = block
    while (i < this.entries && this.isEmpty(i)) i++
    return i
  }

  /**
   * Returns the slice that begins with the count of `cluster`: zeros if there is no block, undefined if its counts are unknown.
   * Valid until the next call.
   */
  slice(cluster: number): Buffer | undefined {
    const first = cluster - (cluster % this.perSlice)
    const block = Math.floor(first / this.perBlock)
    if (block < this.entries && this.isUnreadable(block)) return undefined
    if (first !== this.cachedSlice) {
      this.cachedSlice = first
      const at = this.placeOf(first)
      const got = at > 0 ? this.image.store.read(this.cached, 0, this.sliceBytes, at) : 0
      this.cached.fill(0, got)
    }
    return this.cached
  }

  /** Returns the place of the slice of `cluster` in the file; 0 if there is no block. */
  placeOf(cluster: number): number {
    const first = cluster - (cluster % this.perSlice)
    const block = Math.floor(first / this.perBlock)
    const at = block < this.entries ? this.offsetOf(block) : 0
    if (at === 0 || at >= this.image.fileBytes) return 0
    return at + ((first % this.perBlock) * 2 ** this.order) / 8
  }

  /** Returns the count of a cluster; -1 if it is unknown. Rounded above 2^53. */
  get(cluster: number): number {
    const slice = this.slice(cluster)
    return slice ? this.read(slice, cluster % this.perSlice) : -1
  }

  /** Forgets what was read, after a write. */
  forget(): void {
    this.cachedSlice = -1
  }

  /** Returns the count at `index` of a slice. */
  read(slice: Buffer, index: number): number {
    return getCount(slice, index, this.order)
  }

  /** Sets the count at `index` of a slice to `count`, which must fit. */
  write(slice: Buffer, index: number, count: number): void {
    setCount(slice, index, this.order, count)
  }

  private isEmpty(block: number): boolean {
    return this.table.readUInt32BE(block * 8) === 0 && this.table.readUInt32BE(block * 8 + 4) === 0
  }
}
