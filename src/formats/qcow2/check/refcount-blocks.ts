/** The reference counts as the image has them (QEMU docs/interop/qcow2.rst, "Reference counts"). */
import { getCount, setCount } from '../counts.js'
import { blockOffset, REFCOUNT_TABLE_RESERVED_LOW } from '../words.js'
import type { CheckedImage } from './image.js'

/** Clusters whose counts are read at a time. */
const MAX_SLICE_COUNTS = 2 ** 20

export class RefcountBlocks {
  /** Counts in a block. */
  readonly perBlock: number
  /** Entries of the table. */
  readonly entries: number
  /** Counts in a slice: what is read and written of a block at a time. */
  readonly perSlice: number
  readonly sliceBytes: number
  private readonly table: Buffer
  private readonly order: number
  private readonly cached: Buffer
  private cachedSlice = -1

  constructor(private readonly image: CheckedImage) {
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

  /** Where the table says that the block is; 0 where there is none. Not checked. */
  offsetOf(block: number): number {
    return blockOffset(this.table.readUInt32BE(block * 8), this.table.readUInt32BE(block * 8 + 4))
  }

  hasReservedBits(block: number): boolean {
    return (this.table.readUInt32BE(block * 8 + 4) & REFCOUNT_TABLE_RESERVED_LOW) !== 0
  }

  /**
   * Whether what the table says is no place at all: then its counts are unknown. Behind the end of the
   * file they are 0.
   */
  isUnreadable(block: number): boolean {
    const at = this.offsetOf(block)
    return at % this.image.clusterBytes !== 0 || at >= 2 ** 63
  }

  /** Whether the count of a cluster is unknown. */
  isUnknown(cluster: number): boolean {
    const block = Math.floor(cluster / this.perBlock)
    return block < this.entries && this.isUnreadable(block)
  }

  /** The next block from `block` on that the table names; `entries` where there is none. */
  next(block: number): number {
    let i = block
    while (i < this.entries && this.isEmpty(i)) i++
    return i
  }

  /**
   * The slice that begins with the count of `cluster`: its bytes, zeros where no block is, undefined
   * where they are unknown. Valid until the next call.
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

  /** Where the slice of `cluster` is in the file; 0 where no block is. */
  placeOf(cluster: number): number {
    const first = cluster - (cluster % this.perSlice)
    const block = Math.floor(first / this.perBlock)
    const at = block < this.entries ? this.offsetOf(block) : 0
    if (at === 0 || at >= this.image.fileBytes) return 0
    return at + ((first % this.perBlock) * 2 ** this.order) / 8
  }

  /** The count of a cluster; -1 where it is unknown. Above 2^53 it is rounded. */
  get(cluster: number): number {
    const slice = this.slice(cluster)
    return slice ? this.read(slice, cluster % this.perSlice) : -1
  }

  /** Forgets what was read: somebody wrote. */
  forget(): void {
    this.cachedSlice = -1
  }

  /** The count at `index` of a slice. */
  read(slice: Buffer, index: number): number {
    return getCount(slice, index, this.order)
  }

  /** Sets the count at `index` of a slice to `count`, which fits. */
  write(slice: Buffer, index: number, count: number): void {
    setCount(slice, index, this.order, count)
  }

  private isEmpty(block: number): boolean {
    return this.table.readUInt32BE(block * 8) === 0 && this.table.readUInt32BE(block * 8 + 4) === 0
  }
}
