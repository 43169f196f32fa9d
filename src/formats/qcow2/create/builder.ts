/** Builds qcow2 images: the header's cluster first, then tables and data in the order of the disk; the header is written last. */
import type { LuksArea } from '../../../crypto/luks1.js'
import type { WritableStore } from '../../../io/store.js'
import type { CopiedBitmap, ImageBuilder, NewImage, Packing, Place } from '../../creating.js'
import { fillZeros, reserveSpace } from '../../filling.js'
import { writeBitmaps } from '../bitmap-copy.js'
import { FreshClusters } from './clusters.js'
import { encodeFirstCluster } from './header.js'
import { l1EntriesOf, type Qcow2Shape } from './options.js'
import { PackedStream } from './packed.js'
import { FreshTables } from './tables.js'

/** Where the LUKS header goes, and what encrypts. */
export interface NewEncryption {
  readonly luksBytes: number
  write(store: WritableStore, at: number): void
  /** Returns the store that encrypts what it writes to `store`. */
  encrypted(store: WritableStore): WritableStore
}

export class Qcow2Builder implements ImageBuilder {
  readonly unitBytes: number
  readonly packing: Packing | undefined
  readonly addBitmaps: ImageBuilder['addBitmaps']
  private readonly main: WritableStore
  /** Takes data; it encrypts where the image is encrypted. */
  private readonly data: WritableStore
  /** The same without encryption. */
  private readonly plain: WritableStore
  private readonly clusters: FreshClusters
  private readonly tables: FreshTables
  private readonly packed: PackedStream
  private readonly l1At: number
  private readonly luks: LuksArea | undefined
  private bitmaps: readonly CopiedBitmap[] = []
  /** Up to where the disk has been filled, in bytes. */
  private filled = 0
  /** Up to where the image's own file must reach, in bytes. */
  private endAt = 0

  constructor(
    private readonly image: NewImage,
    private readonly shape: Qcow2Shape,
    encryption: NewEncryption | undefined,
  ) {
    this.unitBytes = 2 ** shape.clusterBits
    this.main = image.files.main
    this.plain = shape.dataFile ? image.files.beside(shape.dataFile.name) : this.main
    this.data = encryption?.encrypted(this.plain) ?? this.plain
    const type = shape.compression === 'zstd' ? 'zstd' : 'deflate'
    const canPack = !shape.dataFile && !encryption
    this.packing = canPack ? { type, maxBytes: this.unitBytes - 1 } : undefined
    if (shape.version === 3) {
      this.addBitmaps = bitmaps => {
        this.bitmaps = bitmaps
      }
    }
    const l1Entries = l1EntriesOf(shape, image.sizeBytes)
    this.clusters = new FreshClusters(this.main, this.unitBytes, shape.refcountOrder)
    this.tables = new FreshTables(this.main, this.clusters, { ...shape, l1Entries })
    this.l1At = l1Entries > 0 ? this.takeBytes(l1Entries * 8) : 0
    if (encryption) {
      const { luksBytes: length } = encryption
      this.luks = { offset: this.takeBytes(length), length }
      // Empty key slots are zeros, which the file has to contain.
      this.endAt = Math.ceil((this.luks.offset + length) / this.unitBytes) * this.unitBytes
      encryption.write(this.main, this.luks.offset)
    }
    this.packed = new PackedStream(this.main, this.clusters, this.unitBytes)
  }

  place(offset: number, length: number): readonly Place[] {
    this.skip(offset)
    this.filled = offset + length
    return this.spread(offset, length, (at, host, count) => this.tables.mapData(at, host, count))
  }

  pack(offset: number, packed: Buffer): void {
    this.skip(offset)
    this.filled = Math.min(offset + this.unitBytes, this.image.sizeBytes)
    this.tables.open(offset)
    this.tables.mapPacked(offset, this.packed.append(packed), packed.length)
  }

  zero(offset: number, length: number): void {
    this.skip(offset)
    this.filled = offset + length
    const { backing } = this.image
    if (this.shape.preallocation !== 'off') {
      this.preallocate(offset, length, backing !== undefined)
      return
    }
    // Past the end of the backing file's disk all reads as zeros.
    const end = Math.min(offset + length, backing?.sizeBytes ?? 0)
    if (end <= offset) return
    const whole = Math.min(offset + length, Math.ceil(end / this.unitBytes) * this.unitBytes)
    if (this.shape.version === 2) this.placeZeros(offset, whole - offset)
    else this.mapZeros(offset, whole)
  }

  skip(offset: number): void {
    const from = this.filled
    if (offset < from) throw new TypeError(`${offset} comes after ${from}`)
    if (offset === from) return
    this.filled = offset
    if (this.shape.preallocation !== 'off') this.preallocate(from, offset - from, false)
  }

  finish(): void {
    const { sizeBytes, backing } = this.image
    this.skip(sizeBytes)
    this.tables.flush()
    this.packed.flush()
    if (this.l1At > 0) this.main.write(this.tables.l1, 0, this.tables.l1.length, this.l1At)
    const bitmaps =
      this.bitmaps.length > 0
        ? writeBitmaps(this.main, this.bitmaps, this.unitBytes, bytes => this.takeBytes(bytes))
        : undefined
    const refcountTable = this.clusters.finish()
    if (this.shape.dataFile) this.plain.truncate(sizeBytes)
    if (this.endAt > this.main.sizeBytes) this.main.truncate(this.endAt)
    const first = encodeFirstCluster(this.shape, {
      sizeBytes,
      l1: { at: this.l1At, entries: this.tables.l1.length / 8 },
      refcountTable,
      luks: this.luks,
      bitmaps,
      backing,
    })
    this.main.write(first, 0, first.length, 0)
  }

  private takeBytes(bytes: number): number {
    return this.clusters.takeTogether(Math.ceil(bytes / this.unitBytes))
  }

  /** Takes space for whole clusters, and has `map` enter each run of them: offset, host offset, count. */
  private spread(
    offset: number,
    length: number,
    map: (offset: number, host: number, count: number) => void,
  ): Place[] {
    const places: Place[] = []
    const end = offset + length
    for (let at = offset; at < end; ) {
      this.tables.open(at)
      const { coverageBytes } = this.tables
      const stop = Math.min(end, (Math.floor(at / coverageBytes) + 1) * coverageBytes)
      const wanted = Math.ceil((stop - at) / this.unitBytes)
      const run = this.shape.dataFile ? { at, clusters: wanted } : this.clusters.take(wanted)
      map(at, run.at, run.clusters)
      const bytes = Math.min(run.clusters * this.unitBytes, end - at)
      const last = places.at(-1)
      if (last && last.at + last.length === run.at) {
        places[places.length - 1] = { ...last, length: last.length + bytes }
      } else {
        places.push({ store: this.data, at: run.at, length: bytes })
      }
      at += bytes
      if (!this.shape.dataFile) this.endAt = Math.max(this.endAt, run.at + bytes)
    }
    return places
  }

  /** @param hidesBacking whether the range reads as zeros, and not from the backing file */
  private preallocate(offset: number, length: number, hidesBacking: boolean): void {
    const { preallocation, version, luks } = this.shape
    const isEncrypted = luks !== undefined
    if (isEncrypted && version === 2) {
      this.placeZeros(offset, length)
      return
    }
    // Space that was never written does not decrypt to zeros.
    const isZero = hidesBacking || isEncrypted
    const hasData = !isZero && !this.shape.isExtended
    const places = this.spread(offset, length, (at, host, count) => {
      if (hasData) this.tables.mapData(at, host, count)
      else this.tables.mapReserved(at, host, count, isZero)
    })
    for (const { at, length: bytes } of places) reserveSpace(this.plain, at, bytes, preallocation)
  }

  private placeZeros(offset: number, length: number): void {
    const places = this.spread(offset, length, (at, host, count) =>
      this.tables.mapData(at, host, count),
    )
    // Space that was never written reads as zeros, unless it is decrypted.
    if (this.shape.luks) for (const place of places) fillZeros(place.store, place.at, place.length)
  }

  private mapZeros(offset: number, end: number): void {
    const { coverageBytes } = this.tables
    for (let at = offset; at < end; ) {
      this.tables.open(at)
      const stop = Math.min(end, (Math.floor(at / coverageBytes) + 1) * coverageBytes)
      this.tables.mapZeros(at, Math.ceil((stop - at) / this.unitBytes))
      at = stop
    }
  }
}
