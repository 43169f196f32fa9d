/**
 * Changes which tables an image has, so that a power cut at any moment leaves the old state or the new one.
 *
 *  (1) Nothing that the old state uses is written. What the new state needs lies in clusters with the count 0, or past the end
 *      of the file: the snapshot table, L1 tables, L2 tables with other flags, changed refcount blocks and the refcount table.
 *  (2) All of that is on the disk before the header names it. The header changes by one write within its first sector.
 *  (3) What only the old state used is given back to the file system after the header is on the disk.
 *
 * So neither state has leaks. If something fails before the header changes, the file gets its old length.
 */
import { ImageError } from '../../../errors.js'
import type { WritableStore } from '../../../io/store.js'
import { loadBitmaps } from '../bitmap-memory.js'
import { createMetadataMapMemory, MetadataMap } from '../metadata-map.js'
import { AUTOCLEAR, clusterBytes, INCOMPATIBLE, type Qcow2Header, readHeader } from '../header.js'
import { type State, writeState } from '../header-update.js'
import { inspectForWriting } from '../inspection.js'
import { makeActiveTable } from './active-tables.js'
import { type Entry, readEntries } from './entries.js'
import { FreeSpace } from './free-space.js'
import { giveBack } from './give-back.js'
import { NewCounts, type Row } from './new-counts.js'
import { OldCounts } from './old-counts.js'
import { type L1Place, References } from './references.js'
import { cutBack } from '../../appending.js'
import type { SnapshotWriting } from '../../snapshot-writer.js'

/** The share of the work that is done when the image has been inspected. */
const INSPECTED = 0.4

export class Change {
  readonly header: Qcow2Header
  /** The snapshots of the old state. */
  readonly snapshots: readonly Entry[]
  readonly references: References
  private readonly metadataMap = new MetadataMap(createMetadataMapMemory())
  private readonly old: OldCounts
  private readonly counts: NewCounts
  private readonly autoclear: bigint
  private hasSwitched = false
  private expected = 0
  private walked = 0

  /** Inspects the image. Throws ImageError if it must not be written, SystemError. */
  private constructor(
    private readonly store: WritableStore,
    private readonly options: SnapshotWriting,
  ) {
    const header = readHeader(store)
    this.header = header
    requireChangeable(store, header)
    this.snapshots = readEntries(store, header)
    const old = new OldCounts(store, header)
    this.old = old
    const cluster = clusterBytes(header)
    const bitmaps = loadBitmaps(store, header, at => old.get(at / cluster) === 1)
    this.autoclear = header.autoclear & (bitmaps.areLost ? 0n : AUTOCLEAR.bitmaps)
    inspectForWriting(this.metadataMap, store, header, bitmaps)
    this.references = new References(store, header)
    const space = new FreeSpace(old, this.metadataMap, cluster, store.path)
    this.counts = new NewCounts(store, header, old, space)
  }

  /**
   * Runs `change`, which has to call `commit`. Throws ImageError, SystemError.
   */
  static run<T>(
    store: WritableStore,
    change: (change: Change) => T,
    options: SnapshotWriting = {},
  ): T {
    const { sizeBytes } = store
    const one = new Change(store, options)
    try {
      return change(one)
    } catch (error) {
      if (!one.hasSwitched) cutBack(store, sizeBytes)
      throw error
    }
  }

  /** The active L1 table of the old state. */
  get active(): L1Place {
    return { at: this.header.l1Offset, entries: this.header.l1Entries }
  }

  /** Says how many L1 entries `refer` and `makeActive` will go through, for the progress. */
  expectEntries(entries: number): void {
    this.expected = entries
    this.walked = 0
    this.tell(0)
  }

  /** Adds `change` to the counts of all that an L1 table refers to. Removing must come before adding: counts have limits. */
  refer(l1: L1Place, change: 1 | -1): void {
    const visit = (cluster: number, clusters: number) =>
      this.counts.addRow({ cluster, clusters }, change)
    this.references.each(l1, visit, index => this.tell(index))
    this.walked += l1.entries
  }

  /** Forgets the clusters of a table itself. */
  forget(at: number, bytes: number): void {
    this.counts.addRow(this.rowOf(at, bytes), -1)
  }

  /** Makes the active L1 table; see `makeActiveTable`. */
  makeActive(source: L1Place, entries: number, holders = 1): Buffer {
    const { store, references, counts } = this
    const parts = { store, references, counts, reached: (index: number) => this.tell(index) }
    const table = makeActiveTable(parts, source, entries, holders)
    this.walked += source.entries
    return table
  }

  /** Writes a table to a new place, which it returns; 0 for an empty one. */
  place(table: Buffer): number {
    const cluster = clusterBytes(this.header)
    const row = this.counts.takeRow(table.length)
    // Whole clusters, so that the table does not end in bytes of others, and the file does not end within it.
    const whole = Buffer.alloc(row.clusters * cluster)
    table.copy(whole)
    const at = row.cluster * cluster
    if (row.clusters > 0) this.store.write(whole, 0, whole.length, at)
    return at
  }

  /** Makes the new state valid. Throws ImageError, SystemError; if the header was not written, the old state stays. */
  commit(
    snapshots: readonly Entry[],
    active: Pick<State, 'sizeBytes' | 'l1Entries' | 'l1Offset'>,
  ): void {
    const { store, counts, header } = this
    const cluster = clusterBytes(header)
    const snapshotsOffset = this.place(Buffer.concat(snapshots.map(entry => entry.bytes)))
    const oldBytes = this.snapshots.reduce((sum, entry) => sum + entry.bytes.length, 0)
    this.forget(header.snapshotsOffset, oldBytes)
    const refcounts = counts.write()
    store.sync()
    this.options.beforeSwitch?.()
    this.hasSwitched = true
    writeState(store, header.version, {
      ...active,
      refcountTableOffset: refcounts.cluster * cluster,
      refcountTableClusters: refcounts.clusters,
      snapshotCount: snapshots.length,
      snapshotsOffset,
      autoclear: this.autoclear,
    })
    store.sync()
    this.options.afterSwitch?.()
    giveBack(store, header, this.old, counts, this.metadataMap)
  }

  /** @param index the entry that the current walk has reached */
  private tell(index: number): void {
    const share = Math.min(1, (this.walked + index) / this.expected)
    this.options.progress?.(INSPECTED + (1 - INSPECTED) * share)
  }

  private rowOf(at: number, bytes: number): Row {
    const cluster = clusterBytes(this.header)
    return { cluster: at / cluster, clusters: Math.ceil(bytes / cluster) }
  }
}

function requireChangeable({ path }: WritableStore, { incompatible }: Qcow2Header): void {
  if ((incompatible & INCOMPATIBLE.externalData) !== 0n) {
    const what = 'its data are in another file, and snapshots do not work with that'
    throw new ImageError('UNSUPPORTED', what, {
      path,
      hint: 'convert it to an image without a data file',
    })
  }
  if ((incompatible & INCOMPATIBLE.corrupt) !== 0n) {
    const hint = 'repair a copy of it with vimgfs check --repair all'
    throw new ImageError('CORRUPT', 'it is marked corrupt', { path, hint })
  }
}
