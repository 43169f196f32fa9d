/** The image that is checked: its dimensions, and its structures with a place of their own. */
import type { Store } from '../../../io/store.js'
import { MAX_L1_BYTES } from '../../limits.js'
import {
  clusterBytes,
  INCOMPATIBLE,
  isExtendedL2,
  l2EntryBytes,
  type Qcow2Header,
  readHeader,
} from '../header.js'
import { isPossibleLuks } from '../../luks-area.js'
import { SNAPSHOT_REQUIRED_EXTRA_BYTES } from '../snapshot-entry.js'
import { type BitmapDirectory, readBitmapDirectory } from './bitmap-directory.js'
import { readSnapshotTable, type SnapshotTable } from './snapshot-table.js'
import { SECTOR_BYTES } from '../../../sector.js'

/** A structure that shares its clusters with nothing else. */
export interface Region {
  readonly name: string
  readonly at: number
  readonly bytes: number
}

/** An L1 table at a possible place. */
export interface L1Table {
  readonly name: string
  readonly at: number
  readonly entries: number
  /** How many entries the file contains; the others read as 0. */
  readonly entriesInFile: number
  readonly isActive: boolean
}

/** The most bytes of all L1 tables, as a multiple of the file's size: sound tables do not overlap. */
const MAX_L1_OVERLAP = 16

export class Qcow2Structure {
  readonly header: Qcow2Header
  readonly clusterBytes: number
  /** The size of the file, rounded up to sectors, as QEMU does it. */
  readonly fileBytes: number
  /** The clusters of the file; the last one may be cut short. */
  readonly clusters: number
  readonly l2EntryBytes: number
  readonly isExtended: boolean
  readonly isExternal: boolean
  /** The highest count that fits in the width. */
  readonly maxCount: number
  readonly snapshots: SnapshotTable
  readonly bitmaps: BitmapDirectory | undefined
  readonly l1Tables: readonly L1Table[]
  readonly regions: readonly Region[]

  /** Reads the header, the snapshot table and the bitmap directory. Throws ImageError for a damaged header. */
  constructor(readonly store: Store) {
    const header = readHeader(store)
    this.header = header
    this.clusterBytes = clusterBytes(header)
    this.fileBytes = Math.ceil(store.sizeBytes / SECTOR_BYTES) * SECTOR_BYTES
    this.clusters = Math.ceil(this.fileBytes / this.clusterBytes)
    this.l2EntryBytes = l2EntryBytes(header)
    this.isExtended = isExtendedL2(header)
    this.isExternal = (header.incompatible & INCOMPATIBLE.externalData) !== 0n
    this.maxCount = 2 ** (2 ** header.refcountOrder) - 1
    this.snapshots = readSnapshotTable(store, header)
    this.bitmaps = readBitmapDirectory(store, header)
    this.l1Tables = this.findL1Tables()
    this.regions = this.findRegions()
  }

  /**
   * Reports whether a range that something names is in the file. It may end in the cluster in which the file ends, or less than a
   * cluster past the end: QEMU allocates without making the file longer.
   */
  isInFile(at: number, bytes: number): boolean {
    return at + bytes - this.fileBytes < this.clusterBytes
  }

  /** Why the image cannot be checked completely; undefined if it can. */
  get obstacle(): { readonly at: number; readonly message: string } | undefined {
    const { header } = this
    const l1Bytes = this.l1Tables.reduce((sum, table) => sum + table.entriesInFile * 8, 0)
    if (l1Bytes > MAX_L1_OVERLAP * this.fileBytes) {
      return { at: header.snapshotsOffset, message: "the snapshots' L1 tables lie over each other" }
    }
    return undefined
  }

  /** The lost parts. The rest of the image can be checked without them. */
  get losses(): readonly { readonly at: number; readonly message: string }[] {
    const { header, snapshots, bitmaps } = this
    const lost: { at: number; message: string }[] = [...header.defects]
    if (snapshots.obstacle !== undefined) {
      const at = header.snapshotsOffset + snapshots.bytes
      lost.push({ at, message: `the snapshot table is damaged: ${snapshots.obstacle}` })
    }
    if (bitmaps?.obstacle !== undefined) lost.push({ at: bitmaps.at, message: bitmaps.obstacle })
    return lost
  }

  /** Whether a lost part may own clusters that nothing else names. */
  get hasLostOwners(): boolean {
    const { header, snapshots, bitmaps } = this
    return (
      header.defects.some(({ part }) => part !== 'reference counts') ||
      snapshots.obstacle !== undefined ||
      bitmaps?.obstacle !== undefined
    )
  }

  /** Reports whether the snapshot's entry says where its L1 table is. */
  namesL1Table(l1At: number, l1Entries: number): boolean {
    return l1At % this.clusterBytes === 0 && l1Entries * 8 <= MAX_L1_BYTES
  }

  /** Reports whether a snapshot's entry has less extra data than version 3 requires. */
  isIncomplete(extraBytes: number): boolean {
    return this.header.version === 3 && extraBytes < SNAPSHOT_REQUIRED_EXTRA_BYTES
  }

  private findL1Tables(): L1Table[] {
    const { header } = this
    const table = (name: string, at: number, entries: number, isActive: boolean): L1Table => ({
      name,
      at,
      entries,
      entriesInFile: Math.max(0, Math.min(entries, Math.floor((this.fileBytes - at) / 8))),
      isActive,
    })
    return [
      table('the L1 table', header.l1Offset, header.l1Entries, true),
      ...this.snapshots.snapshots
        .filter(({ l1At, l1Entries }) => this.namesL1Table(l1At, l1Entries))
        .map(({ number, l1At, l1Entries }) =>
          table(`the L1 table of snapshot ${number}`, l1At, l1Entries, false),
        ),
    ].filter(({ entries }) => entries > 0)
  }

  /** Whether the LUKS header can be where the image says; true also if it says nothing. */
  get hasPossibleLuks(): boolean {
    const { encryption } = this.header
    if (!encryption) return true
    return isPossibleLuks(encryption, this.fileBytes, this.clusterBytes)
  }

  private findRegions(): Region[] {
    const { header, bitmaps } = this
    const luks = this.hasPossibleLuks ? header.encryption : undefined
    return [
      { name: 'the header', at: 0, bytes: this.clusterBytes },
      ...this.l1Tables.map(({ name, at, entries }) => ({ name, at, bytes: entries * 8 })),
      {
        name: 'the snapshot table',
        at: header.snapshotsOffset,
        bytes: this.snapshots.bytes,
      },
      {
        name: 'the refcount table',
        at: header.refcountTableOffset,
        bytes: header.refcountTableClusters * this.clusterBytes,
      },
      {
        name: 'the encryption header',
        at: luks?.offset ?? 0,
        bytes: luks?.length ?? 0,
      },
      {
        name: 'the bitmap directory',
        at: bitmaps?.at ?? 0,
        bytes: bitmaps?.bytes ?? 0,
      },
      ...(bitmaps?.tables ?? []).map(({ number, tableAt, tableEntries }) => ({
        name: `the table of bitmap ${number}`,
        at: tableAt,
        bytes: tableEntries * 8,
      })),
    ].filter(({ bytes }) => bytes > 0)
  }
}
