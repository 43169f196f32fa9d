/** Walks L1 tables (QEMU docs/interop/qcow2.rst, "Cluster mapping"). */
import type { Store } from '../../../io/store.js'
import type { L1Table } from './structure.js'
import { eachEntry } from '../table-entries.js'
import { hostOffset } from '../words.js'

/** Calls `visit` with the two halves and the index of each entry of the part in the file that is not 0. */
export const walkL1 = (
  store: Store,
  { at, entriesInFile }: L1Table,
  visit: (high: number, low: number, index: number) => void,
): void => eachEntry(store, at, entriesInFile * 8, visit)

/** L2 tables by their place in the file, each once, with the number of entries that name it. */
export interface L2Tables {
  readonly length: number
  /** Ascending. */
  readonly at: Float64Array
  readonly times: Uint32Array
  /** The range of host clusters that its entries name, found in the first walk over it. */
  readonly lowest: Float64Array
  readonly highest: Float64Array
}

/** The most tables that are in memory at a time. */
const MAX_TABLES = 2 ** 18

/** Lists the L2 tables that L1 tables name, in parts that fit in memory, ascending by place. */
export class L2Catalog {
  private whole: L2Tables | undefined

  constructor(
    private readonly store: Store,
    private readonly l1Tables: readonly L1Table[],
    /** Past the end of the file no table is read. */
    private readonly fileBytes: number,
    private readonly maxTables = MAX_TABLES,
  ) {}

  *parts(): Generator<L2Tables> {
    if (this.whole) {
      yield this.whole
      return
    }
    const entries = this.l1Tables.reduce((sum, { entriesInFile }) => sum + entriesInFile, 0)
    const max = Math.max(1, Math.min(this.maxTables, entries))
    for (let from = 0; from < this.fileBytes; ) {
      const collector = new Collector(from, this.fileBytes, max)
      for (const table of this.l1Tables) {
        walkL1(this.store, table, (high, low) => collector.add(hostOffset(high, low)))
      }
      const tables = collector.finish()
      // Only if all tables fit at once, keep what the walks found about each.
      if (from === 0 && collector.end >= this.fileBytes) this.whole = tables
      if (tables.length > 0) yield tables
      from = collector.end
    }
  }
}

/** Sorts places and counts equal ones. If there are more than fit, it keeps the lowest. */
class Collector {
  private readonly pending: Float64Array
  private pendingLength = 0
  private at: Float64Array
  private times: Uint32Array
  private length = 0

  constructor(
    private readonly from: number,
    /** Places from here on are left for the next part. */
    public end: number,
    private readonly max: number,
  ) {
    this.pending = new Float64Array(max)
    this.at = new Float64Array(0)
    this.times = new Uint32Array(0)
  }

  add(place: number): void {
    if (place === 0 || place < this.from || place >= this.end) return
    this.pending[this.pendingLength++] = place
    if (this.pendingLength === this.max) this.merge()
  }

  finish(): L2Tables {
    this.merge()
    const { length, at, times } = this
    const lowest = new Float64Array(length).fill(Number.NaN)
    const highest = new Float64Array(length).fill(Number.NaN)
    return { length, at, times, lowest, highest }
  }

  private merge(): void {
    const added = this.pending.subarray(0, this.pendingLength).sort()
    const capacity = Math.min(this.max, this.length + added.length)
    const at = new Float64Array(capacity)
    const times = new Uint32Array(capacity)
    let length = 0
    let kept = 0
    let i = 0
    while (kept < this.length || i < added.length) {
      const old = kept < this.length ? (this.at[kept] as number) : Number.POSITIVE_INFINITY
      const fresh = i < added.length ? (added[i] as number) : Number.POSITIVE_INFINITY
      const place = Math.min(old, fresh)
      if (length === this.max) {
        this.end = place
        break
      }
      let count = old === place ? (this.times[kept++] as number) : 0
      for (; i < added.length && added[i] === place; i++) count++
      at[length] = place
      times[length++] = count
    }
    this.at = at.subarray(0, length)
    this.times = times.subarray(0, length)
    this.length = length
    this.pendingLength = 0
  }
}
