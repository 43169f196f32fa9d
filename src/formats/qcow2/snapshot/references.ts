/** The references of L1 and L2 tables (QEMU docs/interop/qcow2.rst, "Cluster mapping"). */
import { ImageError } from '../../../errors.js'
import type { Store } from '../../../io/store.js'
import { walkL1 } from '../check/l1-walk.js'
import { clusterBytes, l2EntryBytes, type Qcow2Header } from '../header.js'
import { COMPRESSED, hostOffset } from '../words.js'
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

  constructor(
    private readonly store: Store,
    private readonly header: Qcow2Header,
  ) {
    this.clusterBytes = clusterBytes(header)
    this.entryBytes = l2EntryBytes(header)
    this.fileEnd = Math.ceil(store.sizeBytes / this.clusterBytes) * this.clusterBytes
    this.table = Buffer.alloc(this.clusterBytes)
  }

  /**
   * Calls `visit` with each cluster that the table refers to, as often as it does, the L2 tables included.
   * @param reached is told the index of each L1 entry that names a table
   */
  each(
    { at, entries }: L1Place,
    visit: (cluster: number) => void,
    reached: (index: number) => void = () => {},
  ): void {
    const { clusterBytes, entryBytes } = this
    this.eachTable({ at, entries }, (tableAt, index) => {
      reached(index)
      visit(tableAt / clusterBytes)
      const table = this.readL2(tableAt)
      for (let i = 0; i < clusterBytes; i += entryBytes) this.eachOfEntry(table, i, tableAt, visit)
    })
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

  /** Returns the place of the cluster that the entry at `i` names and that is not compressed; 0 if there is none. */
  hostOf(table: Buffer, i: number): number {
    const high = table.readUInt32BE(i)
    return (high & COMPRESSED) !== 0 ? 0 : hostOffset(high, table.readUInt32BE(i + 4))
  }

  private eachOfEntry(
    table: Buffer,
    i: number,
    tableAt: number,
    visit: (cluster: number) => void,
  ): void {
    const { clusterBytes } = this
    const high = table.readUInt32BE(i)
    if ((high & COMPRESSED) === 0) {
      const host = hostOffset(high, table.readUInt32BE(i + 4))
      if (host === 0) return
      this.requireInFile(host, tableAt)
      visit(host / clusterBytes)
      return
    }
    const { clusterBits } = this.header
    const low = table.readUInt32BE(i + 4)
    const at = packedOffset(high, low, clusterBits)
    const last = Math.floor((at + packedLength(high, low, clusterBits) - 1) / clusterBytes)
    for (let cluster = Math.floor(at / clusterBytes); cluster <= last; cluster++) {
      // The compressed bytes may end before their last sector, and the file with them.
      if (cluster * clusterBytes < this.fileEnd) visit(cluster)
    }
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
