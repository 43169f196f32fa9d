/**
 * The clusters of an image that is made from its start to its end, and their reference counts (QEMU docs/interop/qcow2.rst,
 * "Host cluster management"). The file begins with the header, a refcount table of one cluster and the first block. Each
 * further block takes the first cluster that it counts, unless an earlier run needed it in advance. So one block is in memory
 * at a time.
 */
import { ImageError } from '../../../errors.js'
import type { WritableStore } from '../../../io/store.js'
import { MAX_REFCOUNT_TABLE_BYTES } from '../../limits.js'
import { getCount, setCount } from '../refcount-bits.js'

/** Where the table and the first block are. */
const TABLE_CLUSTER = 1
const FIRST_BLOCK_CLUSTER = 2
const ENTRY_BYTES = 8

/** A run of clusters; `at` is in bytes of the file. */
export interface ClusterRun {
  readonly at: number
  readonly clusters: number
}

export class FreshClusters {
  /** The first cluster that is not taken. */
  private next = 0
  /** The clusters of the blocks, in the order of the table. */
  private readonly blocks: number[] = []
  private readonly perBlock: number
  private readonly block: Buffer
  /** The index of the block in `block`. */
  private current = 0
  /** A block whose counts are all 1; undefined for counts of less than a byte. */
  private readonly ones: Buffer | undefined
  private readonly most: number

  constructor(
    private readonly store: WritableStore,
    private readonly clusterBytes: number,
    private readonly order: number,
  ) {
    this.perBlock = (clusterBytes * 8) / 2 ** order
    this.most = Math.min(2 ** (2 ** order) - 1, Number.MAX_SAFE_INTEGER)
    this.block = Buffer.alloc(clusterBytes)
    if (order >= 3) {
      this.ones = Buffer.alloc(clusterBytes)
      for (let i = 0; i < this.perBlock; i++) setCount(this.ones, i, order, 1)
    }
    this.blocks.push(FIRST_BLOCK_CLUSTER)
    this.mark(FIRST_BLOCK_CLUSTER + 1)
  }

  /** Where the next run will begin, in bytes; -1 if a block has to come first. */
  get nextAt(): number {
    return this.needsBlock() ? -1 : this.next * this.clusterBytes
  }

  /** Takes the next clusters: one at least, `clusters` at most. */
  take(clusters: number): ClusterRun {
    if (this.needsBlock()) this.addBlock()
    const run = Math.min(clusters, this.perBlock - (this.next % this.perBlock))
    const at = this.next * this.clusterBytes
    this.mark(run)
    return { at, clusters: run }
  }

  /** Takes so many clusters in one run. Returns where it begins, in bytes. */
  takeTogether(clusters: number): number {
    for (let more = this.blocksFor(clusters); more > 0; more--) this.addBlock()
    const at = this.next * this.clusterBytes
    this.mark(clusters)
    return at
  }

  /** Reports whether the cluster at `at` can be counted once more: its block is in memory, and the count has room. */
  canShare(at: number): boolean {
    const cluster = at / this.clusterBytes
    return (
      Math.floor(cluster / this.perBlock) === this.current &&
      getCount(this.block, cluster % this.perBlock, this.order) < this.most
    )
  }

  /** Counts the cluster at `at` once more. */
  share(at: number): void {
    const index = (at / this.clusterBytes) % this.perBlock
    setCount(this.block, index, this.order, getCount(this.block, index, this.order) + 1)
  }

  /** Writes the last block and the table. No cluster can be taken after that. */
  finish(): ClusterRun {
    const table = this.placeTable()
    this.writeBlock()
    const entries = Buffer.alloc(table.clusters * this.clusterBytes)
    for (const [i, cluster] of this.blocks.entries()) {
      entries.writeBigUInt64BE(BigInt(cluster * this.clusterBytes), i * ENTRY_BYTES)
    }
    this.store.write(entries, 0, entries.length, table.at)
    return table
  }

  private placeTable(): ClusterRun {
    const clustersFor = (blocks: number) => Math.ceil((blocks * ENTRY_BYTES) / this.clusterBytes)
    let clusters = clustersFor(this.blocks.length)
    if (clusters === 1) return { at: TABLE_CLUSTER * this.clusterBytes, clusters }
    for (let needed = 0; needed !== clusters; ) {
      needed = clusters
      clusters = clustersFor(this.blocks.length + this.blocksFor(needed))
    }
    const at = this.takeTogether(clusters)
    this.forget(TABLE_CLUSTER)
    return { at, clusters }
  }

  /** Frees a cluster of the first block. */
  private forget(cluster: number): void {
    if (this.current === 0) {
      setCount(this.block, cluster, this.order, 0)
      return
    }
    // Eight counts, so that counts of less than a byte come with their whole byte.
    const counts = Buffer.alloc(2 ** this.order)
    const at = FIRST_BLOCK_CLUSTER * this.clusterBytes
    this.store.read(counts, 0, counts.length, at)
    setCount(counts, cluster, this.order, 0)
    this.store.write(counts, 0, counts.length, at)
  }

  private needsBlock(): boolean {
    return this.next >= this.blocks.length * this.perBlock
  }

  /** Returns how many blocks are missing for a run of so many clusters, which comes after them. */
  private blocksFor(clusters: number): number {
    let more = 0
    while ((this.blocks.length + more) * this.perBlock < this.next + more + clusters) more++
    return more
  }

  private addBlock(): void {
    const bytes = (this.blocks.length + 1) * ENTRY_BYTES
    if (bytes > MAX_REFCOUNT_TABLE_BYTES) {
      const what = `with clusters of ${this.clusterBytes} bytes the image cannot become larger than ${this.next * this.clusterBytes} bytes`
      throw new ImageError('REFUSED', what, {
        path: this.store.path,
        hint: 'give it larger ones with -o cluster_size',
      })
    }
    this.blocks.push(this.next)
    this.mark(1)
  }

  /** Counts the next clusters once each. Their blocks are in the list. */
  private mark(clusters: number): void {
    for (let left = clusters; left > 0; ) {
      const index = Math.floor(this.next / this.perBlock)
      if (index !== this.current) {
        this.writeBlock()
        this.block.fill(0)
        this.current = index
      }
      const from = this.next % this.perBlock
      const run = Math.min(left, this.perBlock - from)
      this.markRun(from, from + run)
      this.next += run
      left -= run
    }
  }

  private markRun(from: number, to: number): void {
    if (this.ones) {
      const bytes = 2 ** (this.order - 3)
      this.ones.copy(this.block, from * bytes, from * bytes, to * bytes)
    } else {
      for (let i = from; i < to; i++) setCount(this.block, i, this.order, 1)
    }
  }

  private writeBlock(): void {
    const at = (this.blocks[this.current] as number) * this.clusterBytes
    this.store.write(this.block, 0, this.clusterBytes, at)
  }
}
