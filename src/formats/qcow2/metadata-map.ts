/**
 * Knows which clusters of the file hold live metadata, so that none is handed out again or overwritten by the wrong table.
 * Correct reference counts say the same. But a writer that believes wrong counts destroys the image.
 *
 * It is a hash table of cluster numbers in shared memory. It starts small, and gives way to a larger one when it is full: the
 * memory grows then, in its place, so that all threads go on with it.
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

/** Each place has a number and a kind. */
const BYTES_EACH = 9
const HEAD_BYTES = 8

/** Where each table begins in the memory, in bytes; at last the end of all. The kinds of a table follow its numbers. */
const STARTS = [HEAD_BYTES]
for (const size of SIZES) STARTS.push((STARTS.at(-1) as number) + size * BYTES_EACH)

/** Returns memory for a map. It takes only what the tables in use need, and can grow to `STARTS.at(-1)` bytes. */
export const createMetadataMapMemory = (): SharedArrayBuffer =>
  new SharedArrayBuffer(STARTS[1] as number, { maxByteLength: STARTS.at(-1) as number })

/** The numbers of a table's clusters, each plus 1, and their kinds. */
interface Table {
  readonly keys: Float64Array
  readonly kinds: Uint8Array
}

export class MetadataMap {
  private readonly head: Int32Array
  /** Of the tables that this thread has come to. */
  private readonly tables: Table[] = []

  constructor(private readonly memory: SharedArrayBuffer) {
    this.head = new Int32Array(memory, 0, 2)
  }

  /** Returns a table up to the one in use: another thread may have begun with it. */
  private table(index: number): Table {
    this.tables[index] ??= {
      keys: new Float64Array(this.memory, STARTS[index], SIZES[index]),
      kinds: new Uint8Array(
        this.memory,
        (STARTS[index] as number) + 8 * (SIZES[index] as number),
        SIZES[index],
      ),
    }
    return this.tables[index] as Table
  }

  clear(): void {
    for (let index = 0; index <= (this.head[AT.table] as number); index++) {
      const { keys, kinds } = this.table(index)
      keys.fill(0)
      kinds.fill(0)
    }
    this.head.fill(0)
  }

  /** Returns the kind of metadata in this cluster; 0 if there is none. */
  kindOf(cluster: number): Kind | 0 {
    const { keys, kinds } = this.table(this.head[AT.table] as number)
    return kinds[placeOf(keys, cluster)] as Kind | 0
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
      const { keys, kinds } = this.table(this.head[AT.table] as number)
      const place = placeOf(keys, cluster + i)
      // The number keeps its place with kind 0, because the probing of other numbers may pass it.
      if (keys[place] !== 0) kinds[place] = kind
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
    const { keys, kinds } = this.table(this.head[AT.table] as number)
    const place = placeOf(keys, cluster)
    if (keys[place] === 0) this.head[AT.used]!++
    keys[place] = cluster + 1
    kinds[place] = kind
  }

  private enlarge(): void {
    const from = this.head[AT.table] as number
    if (from + 1 === SIZES.length) {
      const what = 'its tables take more clusters than vimgfs can keep apart'
      throw new ImageError('UNSUPPORTED', what, { endsWriting: true })
    }
    // A map that was cleared may have grown before.
    const end = STARTS[from + 2] as number
    if (this.memory.byteLength < end) this.memory.grow(end)
    this.head[AT.table] = from + 1
    this.head[AT.used] = 0
    const { keys, kinds } = this.table(from)
    keys.forEach((key, place) => {
      const kind = kinds[place] as Kind | 0
      if (key !== 0 && kind !== 0) this.put(key - 1, kind)
    })
  }
}

/** Returns the place of `cluster` in a table, or the place to put it. */
function placeOf(keys: Float64Array, cluster: number): number {
  const mask = keys.length - 1
  const mixed = Math.imul((cluster % 2 ** 32) ^ Math.floor(cluster / 2 ** 32), 0x9e3779b1)
  for (let place = (mixed ^ (mixed >>> 15)) & mask; ; place = (place + 1) & mask) {
    const key = keys[place]
    if (key === 0 || key === cluster + 1) return place
  }
}

/** Reports whether several structures may share a cluster of this kind: snapshots share tables. */
const isShareable = (kind: Kind): boolean => kind === KIND.snapshotL2 || kind === KIND.bitmaps
