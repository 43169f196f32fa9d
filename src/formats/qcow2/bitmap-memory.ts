/**
 * The bitmaps of an image in a mount that writes: plain data and shared memory, which can be sent to threads as a message.
 *
 * A bitmap is auto (writes must be recorded in it) or disabled. A bitmap that is already marked as in use is void and stays
 * as it is. A bitmap that this mount cannot keep true is marked as in use with the others, and that mark is never cleared:
 * QEMU then calls it inconsistent and offers to remove it.
 */
import { ImageError, printable } from '../../errors.js'
import type { Store } from '../../io/store.js'
import { MAX_BITMAP_BYTES } from '../limits.js'
import {
  type BitmapTable,
  bitmapBytesFor,
  bitsFor,
  isCluster,
  readBits,
  readTable,
} from './bitmap-table.js'
import { areBitmapsValid, BITMAP_FLAG, type BitmapEntry, readDirectory } from './bitmaps.js'
import { clusterBytes, type Qcow2Header } from './header.js'

/** How far a disk may grow with its bits in memory: to so many times its size, or to at least so many bytes of bits. */
const ROOM_FACTOR = 16
const MIN_ROOM_BYTES = 2 ** 20

const KNOWN_FLAGS = BITMAP_FLAG.auto | BITMAP_FLAG.extraDataCompatible

/** A bitmap that was valid when the image was opened. */
export interface ValidBitmap {
  /** For messages. */
  readonly name: string
  /** The place of its directory entry in the file. */
  readonly entryAt: number
  /** The flags as they were, without the changes of this mount. */
  readonly flags: number
  readonly granularityBits: number
  readonly tableAt: number
  readonly tableEntries: number
  /** Why it cannot be kept true; empty if it can. */
  readonly problem: string
  /** Records the writes; undefined for a disabled bitmap, or if there is a problem. */
  readonly record: BitmapRecord | undefined
}

export interface BitmapRecord {
  /** Bit i of byte j stands for piece 8j + i of the disk, as in the file; with room for growth at the end. */
  readonly bits: SharedArrayBuffer
  /** A byte for each cluster of `bits`; not 0 if the cluster differs from the file. */
  readonly changed: SharedArrayBuffer
}

export interface BitmapMemory {
  readonly clusterBytes: number
  /** The disk's size when they were read. */
  readonly sizeBytes: number
  readonly bitmaps: readonly ValidBitmap[]
  /** The image's bitmaps cannot be read: all must be given up before the first write. */
  readonly areLost: boolean
  /** An Int32 for each bitmap: whether this mount has marked it as in use; one more for `areLost`. */
  readonly marks: SharedArrayBuffer
  /** The bitmaps that will not be kept, for the user. */
  readonly warnings: readonly string[]
}

export const isAuto = ({ flags }: { readonly flags: number }): boolean =>
  (flags & BITMAP_FLAG.auto) !== 0

/** Reports whether the cluster of the file at `at` has the reference count 1. */
export type IsSole = (at: number) => boolean

/** Reads an image's bitmaps for a mount that will write. Throws only what `store` throws. */
export function loadBitmaps(store: Store, header: Qcow2Header, isSole: IsSole): BitmapMemory {
  const valid: ValidBitmap[] = []
  const warnings: string[] = []
  let areLost = false
  if (areBitmapsValid(header)) {
    try {
      valid.push(...new Loader(store, header, isSole).load())
    } catch (error) {
      if (!(error instanceof ImageError)) throw error
      areLost = true
      warnings.push(`the first write makes all bitmaps void: ${error.message}`)
    }
  }
  for (const bitmap of valid) {
    if (bitmap.problem !== '' && isAuto(bitmap)) warnings.push(lossOf(bitmap, bitmap.problem))
  }
  return {
    clusterBytes: clusterBytes(header),
    sizeBytes: header.sizeBytes,
    bitmaps: valid,
    areLost,
    marks: new SharedArrayBuffer(4 * (valid.length + 1)),
    warnings,
  }
}

/** Returns the warning for a bitmap that is not kept. */
export const lossOf = ({ name }: ValidBitmap, reason: string): string =>
  `bitmap "${name}" becomes inconsistent and must be made again: ${reason}`

class Loader {
  private readonly clusterBytes: number
  /** Clusters of other structures and of other bitmaps. */
  private readonly taken = new Set<number>()
  /** The bytes of bits of all bitmaps so far. */
  private bytes = 0

  constructor(
    private readonly store: Store,
    private readonly header: Qcow2Header,
    private readonly isSole: IsSole,
  ) {
    this.clusterBytes = clusterBytes(header)
  }

  load(): ValidBitmap[] {
    const { header, store } = this
    if (!header.bitmaps) throw new ImageError('CORRUPT', 'the header does not say where they are')
    const entries = readDirectory(store, header)
    this.take(0, this.clusterBytes)
    this.take(header.l1Offset, header.l1Entries * 8)
    this.take(header.refcountTableOffset, header.refcountTableClusters * this.clusterBytes)
    this.take(header.snapshotsOffset, Math.min(1, header.snapshotCount))
    this.claim(this.clustersOf(header.bitmaps.directoryOffset, header.bitmaps.directoryBytes))
    const checked = entries
      .filter(({ flags }) => (flags & BITMAP_FLAG.inUse) === 0)
      .map(entry => ({ entry, ...this.check(entry) }))
    const recording = checked.filter(({ entry, table }) => table && isAuto(entry))
    const spareBytes = Math.floor((MAX_BITMAP_BYTES - this.bytes) / recording.length)
    return checked.map(({ entry, table, problem }) =>
      this.bitmapOf(entry, problem, table && isAuto(entry) ? { table, spareBytes } : undefined),
    )
  }

  /** Returns the clusters of `length` bytes from `at` on; a cluster begins at `at`. */
  private clustersOf(at: number, length: number): number[] {
    const first = at / this.clusterBytes
    return Array.from({ length: Math.ceil(length / this.clusterBytes) }, (_, i) => first + i)
  }

  private take(at: number, length: number): void {
    for (const cluster of this.clustersOf(at, length)) this.taken.add(cluster)
  }

  /** Claims these clusters for writing in place. Throws ImageError if something else owns one. */
  private claim(clusters: readonly number[]): void {
    for (const cluster of clusters) {
      const at = cluster * this.clusterBytes
      if (this.taken.has(cluster) || !this.isSole(at)) {
        throw new ImageError('CORRUPT', `the cluster at ${at} is free, or used elsewhere`)
      }
      this.taken.add(cluster)
    }
  }

  /** Returns the table, or why the bitmap cannot be kept. */
  private check(entry: BitmapEntry): { table?: BitmapTable; problem: string } {
    if ((entry.flags & ~KNOWN_FLAGS) !== 0) return { problem: 'it has unknown flags' }
    if (entry.extraBytes > 0 && (entry.flags & BITMAP_FLAG.extraDataCompatible) === 0) {
      return { problem: 'it has data of an unknown kind' }
    }
    const bytes = bitmapBytesFor(this.header.sizeBytes, entry.granularityBits)
    if (this.bytes + bytes > MAX_BITMAP_BYTES) {
      return { problem: `all bitmaps together take more than ${MAX_BITMAP_BYTES} bytes` }
    }
    if (entry.tableEntries !== Math.ceil(bytes / this.clusterBytes) || bytes === 0) {
      return { problem: `its table has ${entry.tableEntries} entries, unlike what the disk needs` }
    }
    try {
      const table = this.readSoleTable(entry)
      this.bytes += bytes
      return { table, problem: '' }
    } catch (error) {
      if (!(error instanceof ImageError)) throw error
      return { problem: error.message }
    }
  }

  /** Returns the table, if it and its clusters belong to this bitmap alone. */
  private readSoleTable(entry: BitmapEntry): BitmapTable {
    const at = Number(entry.tableOffset)
    const table = readTable(this.store, at, entry.tableEntries, this.clusterBytes)
    const clusters = this.clustersOf(at, table.length * 8)
    for (const place of table) if (isCluster(place)) clusters.push(place / this.clusterBytes)
    this.claim(clusters)
    return table
  }

  private bitmapOf(
    entry: BitmapEntry,
    problem: string,
    recording: { table: BitmapTable; spareBytes: number } | undefined,
  ): ValidBitmap {
    const bitmap = {
      name: printable(entry.name.toString('utf8')),
      entryAt: entry.at,
      flags: entry.flags,
      granularityBits: entry.granularityBits,
      tableAt: Number(entry.tableOffset),
      tableEntries: entry.tableEntries,
      problem,
      record: undefined,
    }
    if (!recording) return bitmap
    try {
      return { ...bitmap, record: this.recordOf(bitmap, recording) }
    } catch (error) {
      if (!(error instanceof ImageError)) throw error
      return { ...bitmap, problem: error.message }
    }
  }

  private recordOf(
    { granularityBits }: ValidBitmap,
    { table, spareBytes }: { table: BitmapTable; spareBytes: number },
  ): BitmapRecord {
    const { sizeBytes } = this.header
    const bytes = bitmapBytesFor(sizeBytes, granularityBits)
    const wanted = Math.max(MIN_ROOM_BYTES, bytes * (ROOM_FACTOR - 1))
    const bits = new SharedArrayBuffer(bytes + Math.min(spareBytes, wanted))
    const changed = new SharedArrayBuffer(Math.ceil(bits.byteLength / this.clusterBytes))
    const count = bitsFor(sizeBytes, granularityBits)
    readBits(this.store, table, Buffer.from(bits), count, this.clusterBytes)
    return { bits, changed }
  }
}
