/**
 * Finds out who refers to each cluster of the file: the disk (owner 1), a snapshot (2 and more), or what belongs to the image
 * as a whole. Window by window, in bounded memory.
 */
import type { RefcountBlocks } from '../check/refcount-blocks.js'

/** The content of a cluster. */
export const HOLDS = {
  table: 0x40000000,
  data: 0x20000000,
  packed: 0x10000000,
  zero: 0x08000000,
} as const
/** Several owners refer to it. */
const SHARED = 0x80000000
/** It belongs to the image as a whole. */
const COMMON = 0x04000000
const OWNER = 0x0003ffff

/** The clusters of a window; each takes 8 bytes, or 12. */
const WINDOW_CLUSTERS = 2 ** 21

/** Counts of clusters. */
export interface ClusterTotals {
  data: number
  packed: number
  zero: number
  metadata: number
  leaked: number
  free: number
  /** Clusters that are counted too low or too high, and those whose counts cannot be read. */
  tooLow: number
  tooHigh: number
  unknown: number
}

export class Owners {
  readonly totals: ClusterTotals = {
    data: 0,
    packed: 0,
    zero: 0,
    metadata: 0,
    leaked: 0,
    free: 0,
    tooLow: 0,
    tooHigh: 0,
    unknown: 0,
  }
  /** By owner: the clusters that it refers to, and those that only it refers to. */
  readonly referenced: Float64Array
  readonly exclusive: Float64Array
  chosenReferenced = 0
  chosenExclusive = 0
  /** The window. */
  first = 0
  end = 0
  private readonly who: Uint32Array
  private readonly references: Uint32Array
  private readonly fromChosen: Uint32Array | undefined

  /**
   * @param clusters the clusters of the file, and one more: a structure in the last one may end in the next
   * @param isChosen for each owner whether it is one of those whose common figures are wanted
   */
  constructor(
    private readonly clusters: number,
    private readonly isChosen: Uint8Array,
    private readonly windowClusters = WINDOW_CLUSTERS,
  ) {
    const length = Math.min(clusters, windowClusters)
    this.who = new Uint32Array(length)
    this.references = new Uint32Array(length)
    this.fromChosen = isChosen.includes(1) ? new Uint32Array(length) : undefined
    this.referenced = new Float64Array(isChosen.length)
    this.exclusive = new Float64Array(isChosen.length)
  }

  begin(first: number): void {
    this.first = first
    this.end = Math.min(this.clusters, first + this.windowClusters)
    this.who.fill(0)
    this.references.fill(0)
    this.fromChosen?.fill(0)
  }

  /** Counts one reference of `owner` to each of the clusters that are in the window. */
  refer(owner: number, first: number, clusters: number, holds: number): void {
    const { who, references, fromChosen, referenced } = this
    const from = Math.max(first, this.first) - this.first
    const to = Math.min(first + clusters, this.end) - this.first
    const isChosen = this.isChosen[owner] === 1
    for (let i = from; i < to; i++) {
      const before = who[i] as number
      const last = before & OWNER
      references[i]!++
      if (last === owner) who[i] = before | holds
      else {
        referenced[owner]!++
        const others = last === 0 ? before : (before & ~OWNER) | SHARED
        who[i] = others | owner | holds
      }
      if (!isChosen || !fromChosen) continue
      if (fromChosen[i] === 0) this.chosenReferenced++
      fromChosen[i]!++
    }
  }

  /** Counts one reference to each of the clusters by what belongs to the image as a whole. */
  referCommon(first: number, clusters: number): void {
    const from = Math.max(first, this.first) - this.first
    const to = Math.min(first + clusters, this.end) - this.first
    for (let i = from; i < to; i++) {
      this.who[i] = (this.who[i] as number) | COMMON
      this.references[i]!++
    }
  }

  /** Returns the last owner that refers to the cluster, if the disk (owner 1) is not the only one; 1 if it is. */
  lastOwnerOf(cluster: number): number {
    return (this.who[cluster - this.first] as number) & OWNER
  }

  /** Sums up the window. All references must have been counted. @param fileClusters the clusters of the file */
  sumUp(blocks: RefcountBlocks, fileClusters: number, maxCount: number): void {
    const { who, references, fromChosen, totals } = this
    for (let from = this.first; from < this.end; from += blocks.perSlice) {
      const slice = blocks.slice(from)
      const stop = Math.min(this.end, from + blocks.perSlice)
      for (let cluster = from; cluster < stop; cluster++) {
        const i = cluster - this.first
        const found = references[i] as number
        const count = slice ? blocks.read(slice, cluster - from) : -1
        if (count < 0) totals.unknown++
        if (found === 0) {
          if (count > 0) totals.leaked++
          else if (cluster < fileClusters) totals.free++
          continue
        }
        const bits = who[i] as number
        if (count >= 0 && count < Math.min(found, maxCount)) totals.tooLow++
        else if (count > found) totals.tooHigh++
        this.classify(bits)
        if (count < 0 || (bits & COMMON) !== 0) continue
        if ((bits & SHARED) === 0 && count <= found) this.exclusive[bits & OWNER]!++
        if (fromChosen && (fromChosen[i] as number) >= Math.max(1, count)) this.chosenExclusive++
      }
    }
  }

  private classify(bits: number): void {
    const { totals } = this
    if ((bits & (COMMON | HOLDS.table)) !== 0) totals.metadata++
    else if ((bits & HOLDS.data) !== 0) totals.data++
    else if ((bits & HOLDS.packed) !== 0) totals.packed++
    else totals.zero++
  }
}
