/**
 * Knows which clusters of the file hold live metadata, so that none is handed out again or overwritten by the wrong table.
 * Correct reference counts say the same. But a writer that believes wrong counts destroys the image.
 *
 * It is a hash table of cluster numbers in shared memory. It starts small; the memory of the larger ones costs nothing until
 * they are used.
 */
import { ImageError } from '../../errors.js'

export const KIND = {
  header: 1,
  l1: 2,
  l2: 3,
  refcountTable: 4,
  refcountBlock: 5,
  snapshotTable: 6,
  snapshotL1: 7,
  snapshotL2: 8,
  bitmaps: 9,
  encryption: 10,
} as const
export type Kind = (typeof KIND)[keyof typeof KIND]

/** The sizes of the tables, powers of two. The largest one is enough for all that the limits of formats allow. */
const SIZES = [2 ** 12, 2 ** 16, 2 ** 20, 2 ** 23]
const MAX_LOAD = 0.6
const AT = { table: 0, used: 1 }

export interface MetadataMapMemory {
  readonly head: SharedArrayBuffer
  readonly tables: readonly SharedArrayBuffer[]
}

/** Each place has a number and a kind. */
const BYTES_EACH = 9

export function createMetadataMapMemory(): MetadataMapMemory {
  return {
    head: new SharedArrayBuffer(8),
    tables: SIZES.map(size => new SharedArrayBuffer(size * BYTES_EACH)),
  }
}

export class MetadataMap {
  private readonly head: Int32Array
  private readonly keys: Float64Array[]
  private readonly kinds: Uint8Array[]

  constructor(memory: MetadataMapMemory) {
    this.head = new Int32Array(memory.head)
    this.keys = memory.tables.map((table, i) => new Float64Array(table, 0, SIZES[i]))
    this.kinds = memory.tables.map((table, i) => new Uint8Array(table, 8 * (SIZES[i] as number)))
  }

  clear(): void {
    for (let table = 0; table <= (this.head[AT.table] as number); table++) {
      this.keys[table]!.fill(0)
      this.kinds[table]!.fill(0)
    }
    this.head.fill(0)
  }

  /** Returns the kind of metadata in this cluster; 0 if there is none. */
  kindOf(cluster: number): Kind | 0 {
    const table = this.head[AT.table] as number
    return this.kinds[table]![this.placeOf(table, cluster)] as Kind | 0
  }

  /** Adds clusters. Returns -1, or the first one that holds something else, which it does not change. */
  add(cluster: number, clusters: number, kind: Kind): number {
    let taken = -1
    for (let i = 0; i < clusters; i++) {
      const known = this.kindOf(cluster + i)
      if (known === 0) this.put(cluster + i, kind)
      else if (taken < 0 && !(known === kind && isShareable(kind))) taken = cluster + i
    }
    return taken
  }

  /** Changes the kind of these clusters; 0 removes them. */
  change(cluster: number, clusters: number, kind: Kind | 0): void {
    for (let i = 0; i < clusters; i++) {
      const table = this.head[AT.table] as number
      const place = this.placeOf(table, cluster + i)
      // The number keeps its place with kind 0, because the probing of other numbers may pass it.
      if (this.keys[table]![place] !== 0) this.kinds[table]![place] = kind
      else if (kind !== 0) this.put(cluster + i, kind)
    }
  }

  private put(cluster: number, kind: Kind): void {
    if (
      (this.head[AT.used] as number) + 1 >
      (SIZES[this.head[AT.table] as number] as number) * MAX_LOAD
    ) {
      this.enlarge()
    }
    const table = this.head[AT.table] as number
    const place = this.placeOf(table, cluster)
    if (this.keys[table]![place] === 0) this.head[AT.used]!++
    this.keys[table]![place] = cluster + 1
    this.kinds[table]![place] = kind
  }

  private enlarge(): void {
    const from = this.head[AT.table] as number
    if (from + 1 === SIZES.length) {
      const what = 'its tables take more clusters than vimgfs can keep apart'
      throw new ImageError('UNSUPPORTED', what, { endsWriting: true })
    }
    this.head[AT.table] = from + 1
    this.head[AT.used] = 0
    this.keys[from]!.forEach((key, place) => {
      const kind = this.kinds[from]![place] as Kind | 0
      if (key !== 0 && kind !== 0) this.put(key - 1, kind)
    })
  }

  /** Returns the place of `cluster` in a table, or the place to put it. */
  private placeOf(table: number, cluster: number): number {
    const keys = this.keys[table] as Float64Array
    const mask = keys.length - 1
    const mixed = Math.imul((cluster % 2 ** 32) ^ Math.floor(cluster / 2 ** 32), 0x9e3779b1)
    for (let place = (mixed ^ (mixed >>> 15)) & mask; ; place = (place + 1) & mask) {
      const key = keys[place]
      if (key === 0 || key === cluster + 1) return place
    }
  }
}

/** Reports whether several structures may share a cluster of this kind: snapshots share tables. */
const isShareable = (kind: Kind): boolean => kind === KIND.snapshotL2 || kind === KIND.bitmaps
