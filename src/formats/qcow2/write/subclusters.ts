/**
 * The subclusters of extended L2 entries (QEMU docs/interop/qcow2.rst, "Extended L2 Entries"): which of them are data, which
 * of them a write allocates, and which of them a zeroed range marks.
 *
 *  (1) A subcluster is never marked both allocated and zero. An entry that says so is damage.
 *  (2) The bits of a compressed cluster have no meaning: they are neither read nor kept.
 *  (3) A subcluster of a cluster that stays is punched before its bits say zero. A cluster whose last subcluster becomes zero
 *      is released; a data file keeps it.
 *
 * If entries are not extended, a cluster counts as one subcluster here, and only sizes are asked for. Pieces of a cluster are
 * in bytes from its start.
 */
import { COMPRESSED, putEntry } from '../words.js'
import { type Qcow2Driver, SUBCLUSTERS } from '../driver.js'
import type { Mapping } from './mapping.js'
import type { WriteContext } from './parts.js'

export const ALL_SUBCLUSTERS = 0xffffffff

/** A run of subclusters of one cluster. */
export interface Piece {
  readonly start: number
  readonly length: number
  /** Their bits. */
  readonly bits: number
}

export class Subclusters {
  readonly sizeBytes: number
  private readonly driver: Qcow2Driver
  private readonly clusterBytes: number

  constructor(
    private readonly context: WriteContext,
    private readonly mapping: Mapping,
  ) {
    this.driver = context.driver
    this.clusterBytes = this.driver.unitBytes
    this.sizeBytes = this.driver.extended ? this.clusterBytes / SUBCLUSTERS : this.clusterBytes
  }

  /** Returns how many bytes from `inCluster` on are data, at most `length`, which the cluster has. */
  dataBytes(slice: Buffer, at: number, inCluster: number, length: number): number {
    const { zeros, allocated } = this.bitsAt(slice, at)
    if (allocated === ALL_SUBCLUSTERS && zeros === 0) return length
    let end = inCluster
    while (end < inCluster + length) {
      const bit = Math.floor(end / this.sizeBytes)
      if (!((allocated >>> bit) & 1) || (zeros >>> bit) & 1) break
      end = (bit + 1) * this.sizeBytes
    }
    return Math.min(length, end - inCluster)
  }

  /** Reports whether an entry has no allocated subcluster, so that nothing has to be copied to a new cluster. */
  holdsNothing(slice: Buffer, at: number): boolean {
    const high = slice.readUInt32BE(at)
    if (high & COMPRESSED) return false
    return slice.readUInt32BE(at + 12) === 0
  }

  /** Returns the subclusters of a new cluster that a write to `length` bytes from `inCluster` on allocates. */
  touched(inCluster: number, length: number): Piece {
    const first = Math.floor(inCluster / this.sizeBytes)
    const until = Math.min(inCluster + length, this.clusterBytes)
    return this.piece(first, Math.ceil(until / this.sizeBytes))
  }

  /** Returns the first run of them that is not allocated in the entry at `at`; its first one is not. */
  missing(slice: Buffer, at: number, inCluster: number, length: number): Piece {
    const { allocated } = this.bitsAt(slice, at)
    const first = Math.floor(inCluster / this.sizeBytes)
    const last = Math.floor(
      Math.min(inCluster + length - 1, this.clusterBytes - 1) / this.sizeBytes,
    )
    let end = first + 1
    while (end <= last && !((allocated >>> end) & 1)) end++
    return this.piece(first, end)
  }

  private piece(first: number, end: number): Piece {
    return {
      start: first * this.sizeBytes,
      length: (end - first) * this.sizeBytes,
      bits: bitsOf(first, end),
    }
  }

  /** Marks subclusters of an entry as allocated. `wasPacked`: its cluster was compressed. Rule (2). */
  allocate(slice: Buffer, at: number, bits: number, wasPacked: boolean): void {
    const zeros = wasPacked ? 0 : slice.readUInt32BE(at + 8)
    const allocated = wasPacked ? 0 : slice.readUInt32BE(at + 12)
    this.put(slice, at, zeros & ~bits, allocated | bits)
  }

  /** Marks all subclusters of an entry as zero. */
  zeroAll(slice: Buffer, at: number): void {
    this.put(slice, at, ALL_SUBCLUSTERS, 0)
  }

  /**
   * Makes the subclusters of the bytes `from` to `to` of a cluster read as zeros. Returns how many bytes are done; 0 if the
   * cluster is compressed, so that they have to be written.
   */
  zero(slice: Buffer, at: number, from: number, to: number, offset: number): number {
    if (slice.readUInt32BE(at) & COMPRESSED) return 0
    const { dataStore } = this.context
    const bits = bitsOf(from / this.sizeBytes, Math.ceil(to / this.sizeBytes))
    const { zeros, allocated } = this.bitsAt(slice, at)
    const { external } = this.driver
    const host = this.mapping.ownHost(slice, at, offset)
    const left = (allocated & ~bits) >>> 0
    // Punch at once: if a power cut comes before the flush, either old bytes or zeros are right.
    if (host >= 0 && (left !== 0 || external)) dataStore.punch(host + from, to - from)
    if (left === 0 && !external) {
      this.mapping.release(slice, at)
      putEntry(slice, at, 0, 0, 0)
    }
    this.put(slice, at, zeros | bits, left)
    return to - from
  }

  /** Rule (1). */
  private bitsAt(slice: Buffer, at: number): { zeros: number; allocated: number } {
    const zeros = slice.readUInt32BE(at + 8)
    const allocated = slice.readUInt32BE(at + 12)
    if ((zeros & allocated) !== 0) {
      throw this.driver.damage('subclusters are marked both allocated and zero')
    }
    return { zeros, allocated }
  }

  private put(slice: Buffer, at: number, zeros: number, allocated: number): void {
    slice.writeUInt32BE(zeros >>> 0, at + 8)
    slice.writeUInt32BE(allocated >>> 0, at + 12)
  }
}

/** Returns a word with the bits `first` to `end - 1` set. */
const bitsOf = (first: number, end: number): number =>
  (end - first === 32 ? ALL_SUBCLUSTERS : (2 ** (end - first) - 1) << first) >>> 0
