/**
 * Finds the bytes of a hosted sparse extent, through the grain directory and the grain tables that it names (VMware, Virtual
 * Disk Format 5.0, "Hosted Sparse Extents"). An entry has 32 bits and counts sectors.
 */
import type { ImageError } from '../../errors.js'
import type { Extent, FormatDriver } from '../driver.js'
import { maxPackedBytes, type PackedGrain, unpackGrain } from './grain.js'
import type { ExtentParts } from './parts.js'
import { directoryEntries, isInFile, type SparseHeader, tableBytes } from './sparse-header.js'
import { SECTOR_BYTES } from '../../sector.js'
import { ENTRY_BYTES, UNALLOCATED, ZERO } from './entries.js'
import { SLICE_BYTES } from '../../cache/table-pool.js'
import { damageOf, naming } from '../damage.js'

/** The kind of a grain: neighbours of one kind become one extent. */
type RunKind = 'data' | 'zero' | 'parent'

export class SparseDriver implements FormatDriver {
  readonly sizeBytes: number
  readonly unitBytes: number
  /** How many bytes of the disk one grain table maps. */
  private readonly coverage: number
  private readonly directoryBytes: number
  private readonly tableBytes: number
  /** The places where no grain can be: the header, the descriptor and the directories. */
  private readonly reserved: readonly { readonly start: number; readonly end: number }[]
  /** The kind and the place of the last decoded entry. Fields, to avoid an object on the data path. */
  private kind: RunKind | 'packed' | 'damaged' = 'parent'
  private at = 0
  /** The size of the file, for one lookup. */
  private fileBytes = 0
  private merged: Buffer | undefined

  /** @param header the header of an extent with a capacity */
  constructor(
    private readonly parts: ExtentParts,
    private readonly header: SparseHeader,
  ) {
    this.sizeBytes = header.capacityBytes
    this.unitBytes = header.grainBytes
    this.coverage = header.grainBytes * header.tableEntries
    this.directoryBytes = tableBytes(directoryEntries(header))
    this.tableBytes = tableBytes(header.tableEntries)
    this.reserved = reservedPlaces(header, this.directoryBytes)
  }

  lookup(offset: number, length: number): Extent {
    this.fileBytes = this.parts.store.sizeBytes
    const index = Math.floor(offset / this.coverage)
    const inTable = offset - index * this.coverage
    const table = this.table(index)
    if (table === undefined) {
      const unallocated = this.unallocatedTables(index) * this.coverage - inTable
      return { kind: 'parent', length: Math.min(length, unallocated) }
    }
    const entry = Math.floor(inTable / this.unitBytes)
    const inGrain = inTable % this.unitBytes
    this.decode(table.readUInt32LE(entry * ENTRY_BYTES))
    if (this.kind === 'damaged') return this.redundantGrain(index, entry, offset, length)
    if (this.kind === 'packed') {
      const packedBytes = this.likelyBytes(table, entry)
      return this.packed(this.at, packedBytes, inGrain, offset, length)
    }
    return this.run(table, entry, inGrain, length)
  }

  /** Returns the grain table of a directory entry, valid until the next read; undefined if there is none. */
  private table(index: number): Buffer | undefined {
    const { directoryAt } = this.header
    const sector = this.directoryEntry(directoryAt, index)
    const both = this.header.readsBoth ? this.bothTables(index, sector) : undefined
    if (both) return both
    if (sector === UNALLOCATED) return undefined
    if (this.isTable(sector)) return this.read(sector * SECTOR_BYTES, this.tableBytes)
    const spare = this.redundantTable(index)
    if (spare) return spare
    throw this.damage(
      `the grain directory's entry ${index} names a table at ${sector * SECTOR_BYTES}, which cannot be`,
    )
  }

  /**
   * Returns the first table, at `sector`, completed with entries that only the redundant one has; undefined if that one cannot
   * be trusted. Valid until the next call.
   */
  private bothTables(index: number, sector: number): Buffer | undefined {
    if (sector !== UNALLOCATED && !this.isTable(sector)) return undefined
    const redundant = this.redundantTable(index)
    if (!redundant || !this.isSound(redundant)) return undefined
    this.merged ??= Buffer.alloc(this.tableBytes)
    redundant.copy(this.merged, 0, 0, this.tableBytes)
    if (sector === UNALLOCATED) return this.merged
    const first = this.read(sector * SECTOR_BYTES, this.tableBytes)
    for (let at = 0; at < this.tableBytes; at += ENTRY_BYTES) {
      const said = first.readUInt32LE(at)
      if (said !== UNALLOCATED) this.merged.writeUInt32LE(said, at)
    }
    return this.merged
  }

  /** Reports whether the file has all grains that a table names. */
  private isSound(table: Buffer): boolean {
    for (let at = 0; at < this.header.tableEntries * ENTRY_BYTES; at += ENTRY_BYTES) {
      this.decode(table.readUInt32LE(at))
      if (this.kind === 'damaged') return false
      const end = this.at + this.unitBytes
      if (this.kind === 'data' && end > this.fileBytes) return false
    }
    return true
  }

  /** Returns the redundant table of a directory entry; undefined if there is none, or if it is damaged. */
  private redundantTable(index: number): Buffer | undefined {
    const { redundantDirectoryAt } = this.header
    if (redundantDirectoryAt === undefined) return undefined
    const sector = this.directoryEntry(redundantDirectoryAt, index)
    if (!this.isTable(sector)) return undefined
    return this.read(sector * SECTOR_BYTES, this.tableBytes)
  }

  private isTable(sector: number): boolean {
    return isInFile(sector * SECTOR_BYTES, this.tableBytes, this.fileBytes)
  }

  private directoryEntry(directoryAt: number, index: number): number {
    const slice = this.directorySlice(directoryAt, index)
    return slice.readUInt32LE((index * ENTRY_BYTES) % SLICE_BYTES)
  }

  private directorySlice(directoryAt: number, index: number): Buffer {
    const start = Math.floor((index * ENTRY_BYTES) / SLICE_BYTES) * SLICE_BYTES
    const length = Math.min(SLICE_BYTES, this.directoryBytes - start)
    return this.read(directoryAt + start, length)
  }

  /** Returns how many entries of the directory from `index` on name no table, within the slice of `index`. */
  private unallocatedTables(index: number): number {
    // The other directory may name each of these tables.
    if (this.header.readsBoth) return 1
    const slice = this.directorySlice(this.header.directoryAt, index)
    const first = (index * ENTRY_BYTES) % SLICE_BYTES
    const end = Math.min(SLICE_BYTES, first + this.directoryBytes - index * ENTRY_BYTES)
    let at = first + ENTRY_BYTES
    while (at < end && slice.readUInt32LE(at) === UNALLOCATED) at += ENTRY_BYTES
    return (at - first) / ENTRY_BYTES
  }

  /** Sets `kind` and `at` from an entry of a grain table. */
  private decode(sector: number): void {
    if (sector === UNALLOCATED) this.kind = 'parent'
    else if (sector === ZERO && this.header.hasZeroGrains) this.kind = 'zero'
    else {
      this.at = sector * SECTOR_BYTES
      if (!this.isGrain(this.at)) this.kind = 'damaged'
      else this.kind = this.header.isCompressed ? 'packed' : 'data'
    }
  }

  /** Reports whether a grain can begin at `at`. Reading it decides how much of it the file has. */
  private isGrain(at: number): boolean {
    if (at >= this.fileBytes) return false
    const end = at + (this.header.isCompressed ? SECTOR_BYTES : this.unitBytes)
    for (const place of this.reserved) if (at < place.end && end > place.start) return false
    return true
  }

  /** Returns the run of grains from `entry` on, within the table, that continue the entry just decoded. */
  private run(table: Buffer, entry: number, inGrain: number, length: number): Extent {
    const kind = this.kind as RunKind
    const start = this.at + inGrain
    let end = this.unitBytes - inGrain
    for (let next = entry + 1; end < length && next < this.header.tableEntries; next++) {
      this.decode(table.readUInt32LE(next * ENTRY_BYTES))
      if (this.kind !== kind || (kind === 'data' && this.at !== start + end)) break
      end += this.unitBytes
    }
    return this.extent(kind, start, Math.min(length, end))
  }

  private extent(kind: RunKind, at: number, length: number): Extent {
    return kind === 'data' ? { kind, length, store: this.parts.store, at } : { kind, length }
  }

  /**
   * Finds a grain whose entry is damaged in the redundant table. An entry there that names nothing does not count: the first
   * one says that something was written.
   */
  private redundantGrain(index: number, entry: number, offset: number, length: number): Extent {
    const damagedAt = this.at
    const inGrain = offset % this.unitBytes
    const inside = Math.min(length, this.unitBytes - inGrain)
    const table = this.redundantTable(index)
    if (table) this.decode(table.readUInt32LE(entry * ENTRY_BYTES))
    if (table && this.kind === 'packed') {
      const packedBytes = this.likelyBytes(table, entry)
      return this.packed(this.at, packedBytes, inGrain, offset, inside)
    }
    if (table && (this.kind === 'data' || this.kind === 'zero')) {
      return this.extent(this.kind, this.at + inGrain, inside)
    }
    const what = damagedAt < this.fileBytes ? 'where tables are' : 'beyond the end of the file'
    throw this.damage(`a grain table's entry names a grain at ${damagedAt}, ${what}`)
  }

  /** Returns the size of the compressed grain of `entry` if the next one follows it; else a size that is enough for most. */
  private likelyBytes(table: Buffer, entry: number): number {
    const next = entry + 1
    const sector = next < this.header.tableEntries ? table.readUInt32LE(next * ENTRY_BYTES) : 0
    const between = sector * SECTOR_BYTES - this.at
    const isNext = between > 0 && between <= maxPackedBytes(this.unitBytes)
    return isNext ? between : this.unitBytes + SECTOR_BYTES
  }

  private packed(
    at: number,
    packedBytes: number,
    inGrain: number,
    offset: number,
    length: number,
  ): Extent {
    const { grains, storeId, store } = this.parts
    const grainStart = offset - inGrain
    const neededBytes = Math.min(this.unitBytes, this.sizeBytes - grainStart)
    const grain: PackedGrain = { at, packedBytes, offset: grainStart, neededBytes }
    // Give the place on the disk, too: `at` may hold the marker of another grain.
    return {
      kind: 'packed',
      length: Math.min(length, this.unitBytes - inGrain),
      skip: inGrain,
      wholeBytes: this.unitBytes,
      job: { format: 'vmdk', storeId, numbers: [at, packedBytes, grainStart, neededBytes] },
      unpack: () =>
        grains.get(storeId, grainStart, () => {
          const target = Buffer.allocUnsafeSlow(this.unitBytes)
          this.unpackInto(store, grain, target)
          return target
        }),
      unpackInto: target => {
        const cached = grains.find(storeId, grainStart)
        if (cached) cached.copy(target)
        else this.unpackInto(store, grain, target)
      },
    }
  }

  private unpackInto(store: ExtentParts['store'], grain: PackedGrain, target: Buffer): void {
    naming(store.path, () => unpackGrain(store, grain, target))
  }

  private read(at: number, length: number): Buffer {
    return this.parts.readTable(at, length)
  }

  private damage(message: string): ImageError {
    return damageOf(this.parts.store.path, message)
  }
}

function reservedPlaces(
  { descriptor, directoryAt, redundantDirectoryAt }: SparseHeader,
  directoryBytes: number,
): { start: number; end: number }[] {
  const places = [{ start: 0, end: SECTOR_BYTES }]
  const add = (start: number, bytes: number) => places.push({ start, end: start + bytes })
  if (descriptor) add(descriptor.offset, descriptor.bytes)
  add(directoryAt, directoryBytes)
  if (redundantDirectoryAt !== undefined) add(redundantDirectoryAt, directoryBytes)
  return places
}
