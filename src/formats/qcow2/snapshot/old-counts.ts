/** The reference counts of an image as its file has them (QEMU docs/interop/qcow2.rst, "Reference counts"). */
import type { Store } from '../../../io/store.js'
import { getCount, zeroCount } from '../refcount-bits.js'
import { clusterBytes, type Qcow2Header } from '../header.js'
import { blockOffset, readWords, wordBuffer } from '../words.js'

export class OldCounts {
  /** How many clusters a block counts. */
  readonly perBlock: number
  /** The places of the blocks in the file; 0 where there is none. */
  readonly places: Float64Array
  private readonly clusterBytes: number
  private readonly block: Buffer
  private loaded = -1

  constructor(
    private readonly store: Store,
    private readonly header: Qcow2Header,
  ) {
    this.clusterBytes = clusterBytes(header)
    this.perBlock = (this.clusterBytes * 8) / 2 ** header.refcountOrder
    // Of its own, so that its counts are aligned.
    this.block = wordBuffer(this.clusterBytes)
    const { refcountTableOffset, refcountTableClusters } = header
    const bytes = refcountTableClusters * this.clusterBytes
    const words = readWords(store, wordBuffer(bytes), bytes, refcountTableOffset)
    this.places = new Float64Array(bytes / 8)
    for (let i = 0; i < this.places.length; i++) {
      this.places[i] = blockOffset(words[i * 2] as number, words[i * 2 + 1] as number)
    }
  }

  get(cluster: number): number {
    const index = Math.floor(cluster / this.perBlock)
    if (!(this.places[index] as number)) return 0
    return getCount(this.loadedBlock(index), cluster % this.perBlock, this.header.refcountOrder)
  }

  /** Returns the first cluster from `cluster` on whose count is 0. */
  nextFree(cluster: number): number {
    const { perBlock, header, places } = this
    for (let at = cluster; ; ) {
      const index = Math.floor(at / perBlock)
      if (!(places[index] as number)) return at
      const block = this.loadedBlock(index)
      const found = zeroCount(block, at % perBlock, perBlock, header.refcountOrder)
      if (found >= 0) return index * perBlock + found
      at = (index + 1) * perBlock
    }
  }

  private loadedBlock(index: number): Buffer {
    if (index !== this.loaded) {
      this.read(index, this.block)
      this.loaded = index
    }
    return this.block
  }

  /** Reads the block with this index into `target`; zeros if there is none. */
  read(index: number, target: Buffer): void {
    readWhole(this.store, target, this.places[index] ?? 0)
  }
}

/** Reads a cluster at `at`; zeros past the end of the file, and at 0. */
export function readWhole(store: Store, target: Buffer, at: number): void {
  const got = at > 0 && at < store.sizeBytes ? store.read(target, 0, target.length, at) : 0
  target.fill(0, got)
}
