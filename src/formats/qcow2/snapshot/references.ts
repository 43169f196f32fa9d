/** The references of L1 and L2 tables (QEMU docs/interop/qcow2.rst, "Cluster mapping"). */
import { ImageError } from '../../../errors.js'
import type { Store } from '../../../io/store.js'
import { walkL1 } from '../check/l1-walk.js'
import { clusterBytes, l2EntryBytes, type Qcow2Header } from '../header.js'
import { COMPRESSED, COPIED, hostOffset } from '../words.js'
import { readWhole } from './old-counts.js'
import { packedOffset, packedLength } from '../packed-entry.js'

/** An L1 table, or its first entries. */
export interface L1Place {
  readonly at: number
  readonly entries: number
}

export class References {
  readonly clusterBytes: number
  /** The bytes of an L2 entry. */
  readonly entryBytes: number
  private readonly fileEnd: number
  /** The L2 table that was read last. */
  private readonly table: Buffer
  private readonly view: DataView

  constructor(
    private readonly store: Store,
    private readonly header: Qcow2Header,
  ) {
    this.clusterBytes = clusterBytes(header)
    this.entryBytes = l2EntryBytes(header)
    this.fileEnd = Math.ceil(store.sizeBytes / this.clusterBytes) * this.clusterBytes
    this.table = Buffer.alloc(this.clusterBytes)
    const { buffer, byteOffset, length } = this.table
    this.view = new DataView(buffer, byteOffset, length)
  }

  /**
   * Calls `visit` with the clusters that the table refers to, as often as it does, the L2 tables included: the first of a row, and
   * how many there are.
   * @param reached is told the index of each L1 entry that names a table
   */
  each(
    { at, entries }: L1Place,
    visit: (first: number, clusters: number) => void,
    reached: (index: number) => void = () => {},
  ): void {
    this.eachTable({ at, entries }, (tableAt, index) => {
      reached(index)
      visit(tableAt / this.clusterBytes, 1)
      this.readL2(tableAt)
      this.eachRow(tableAt, visit)
    })
  }

  /** Calls `visit` with the rows of clusters that the table names which was read last. */
  private eachRow(tableAt: number, visit: (first: number, clusters: number) => void): void {
    const { clusterBytes, entryBytes, view } = this
    let first = 0
    let end = 0
    for (let i = 0; i < clusterBytes; i += entryBytes) {
      const high = view.getUint32(i)
      const low = view.getUint32(i + 4)
      const isPacked = (high & COMPRESSED) !== 0
      const host = isPacked ? 0 : hostOffset(high, low)
      if (host !== 0 && host === end) {
        end += clusterBytes
        continue
      }
      if (end > first) {
        this.requireInFile(end - clusterBytes, tableAt)
        visit(first / clusterBytes, (end - first) / clusterBytes)
      }
      first = host
      end = host
      if (isPacked) this.packedRow(high, low, visit)
      else if (host !== 0) {
        this.requireInFile(host, tableAt)
        end += clusterBytes
      }
    }
    if (end === first) return
    this.requireInFile(end - clusterBytes, tableAt)
    visit(first / clusterBytes, (end - first) / clusterBytes)
  }

  /** Calls `visit` with the place of each L2 table, and the index of the entry that names it. */
  eachTable({ at, entries }: L1Place, visit: (tableAt: number, index: number) => void): void {
    const table = { name: '', at, entries, entriesInFile: entries, isActive: false }
    walkL1(this.store, table, (high, low, index) => {
      const tableAt = hostOffset(high, low)
      if (tableAt === 0) return
      this.requireInFile(tableAt, at)
      visit(tableAt, index)
    })
  }

  /** Returns the L2 table at `at`, valid until the next call of a method. */
  readL2(at: number): Buffer {
    readWhole(this.store, this.table, at)
    return this.table
  }

  /**
   * Clears the COPIED flags of the table that was read last, where an entry names a cluster that is not compressed. Returns whether
   * one was set.
   */
  clearFlags(): boolean {
    const { view, table, clusterBytes, entryBytes } = this
    let hasChanged = false
    for (let i = 0; i < clusterBytes; i += entryBytes) {
      const high = view.getUint32(i)
      if ((high & COPIED) === 0 || (high & COMPRESSED) !== 0) continue
      if (hostOffset(high, view.getUint32(i + 4)) === 0) continue
      table[i] = (table[i] as number) & 0x7f
      hasChanged = true
    }
    return hasChanged
  }

  /** Returns the place of the cluster that the entry at `i` names and that is not compressed; 0 if there is none. */
  hostOf(table: Buffer, i: number): number {
    const high = table.readUInt32BE(i)
    return (high & COMPRESSED) !== 0 ? 0 : hostOffset(high, table.readUInt32BE(i + 4))
  }

  private packedRow(
    high: number,
    low: number,
    visit: (first: number, clusters: number) => void,
  ): void {
    const { clusterBytes } = this
    const { clusterBits } = this.header
    const at = packedOffset(high, low, clusterBits)
    const first = Math.floor(at / clusterBytes)
    const last = Math.floor((at + packedLength(high, low, clusterBits) - 1) / clusterBytes)
    // The compressed bytes may end before their last sector, and the file with them.
    const end = Math.min(last + 1, this.fileEnd / clusterBytes)
    if (end > first) visit(first, end - first)
  }

  private requireInFile(at: number, namedAt: number): void {
    if (at % this.clusterBytes === 0 && at < this.fileEnd) return
    const what = `the table at ${namedAt} names a cluster at ${at}, where none can be`
    throw new ImageError('CORRUPT', what, {
      path: this.store.path,
      hint: 'look at it with vimgfs check',
    })
  }
}
