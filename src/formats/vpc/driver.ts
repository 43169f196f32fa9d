/**
 * Where the bytes of a VHD image are. A fixed image is the disk itself. In a dynamic one, each entry of the block
 * allocation table is the sector of a block: first a bitmap of its sectors, then the sectors. A block without a
 * place, and a sector whose bit is not set, were never written and read as zeros (Virtual Hard Disk Image Format
 * Specification 1.0, "Block Allocation Table and Data Blocks").
 */
import type { MetadataCache } from '../../cache/metadata-cache.js'
import { SLICE_BYTES } from '../../cache/table-pool.js'
import type { Store } from '../../io/store.js'
import type { Extent, FormatDriver } from '../driver.js'
import { DYNAMIC_HEADER_BYTES, type VpcBlocks, type VpcHeader, wholeSectors } from './header.js'
import { SECTOR_BYTES } from '../../sector.js'
import { damageOf } from '../damage.js'

export interface VpcParts {
  readonly header: VpcHeader
  readonly store: Store
  /** The store's id in the cache, 0 to 511. */
  readonly storeId: number
  readonly metadata: MetadataCache
}

const UNALLOCATED = 0xffffffff
const ENTRY_BYTES = 4
/** The most blocks that one lookup reads. */
const MAX_BLOCKS = 4096

/** A fixed image: the file without its footer. */
export class FixedVpcDriver implements FormatDriver {
  readonly unitBytes = 1
  readonly sizeBytes: number

  constructor(
    { sizeBytes }: VpcHeader,
    private readonly store: Store,
  ) {
    this.sizeBytes = sizeBytes
  }

  lookup(offset: number, length: number): Extent {
    const { store } = this
    // If the file was cut off, the footer must not appear as data.
    const end = store.sizeBytes - SECTOR_BYTES
    if (offset >= end) {
      const what = `the data at ${offset} lies past the end of the file`
      throw damageOf(store.path, what)
    }
    return { kind: 'data', length: Math.min(length, end - offset), store, at: offset }
  }
}

export class DynamicVpcDriver implements FormatDriver {
  readonly unitBytes = 1
  readonly sizeBytes: number

  constructor(
    private readonly parts: VpcParts,
    private readonly blocks: VpcBlocks,
  ) {
    this.sizeBytes = parts.header.sizeBytes
  }

  lookup(offset: number, length: number): Extent {
    const { blockBytes } = this.blocks
    const index = Math.floor(offset / blockBytes)
    const blockAt = this.blockAt(index)
    if (blockAt === undefined) return { kind: 'zero', length: this.unallocated(offset, length) }
    const within = offset % blockBytes
    const bytes = Math.min(length, blockBytes - within)
    return this.inBlock(blockAt, within, bytes)
  }

  /** Returns how many bytes from `offset` on lie in blocks without a place, `length` at most. */
  private unallocated(offset: number, length: number): number {
    const { blockBytes } = this.blocks
    let end = Math.ceil((offset + 1) / blockBytes) * blockBytes
    for (let i = 0; i < MAX_BLOCKS && end < offset + length; i++) {
      if (this.entry(end / blockBytes) !== UNALLOCATED) break
      end += blockBytes
    }
    return Math.min(length, end - offset)
  }

  private entry(index: number): number {
    const { store, storeId, metadata } = this.parts
    const { tableAt, tableEntries } = this.blocks
    const place = index * ENTRY_BYTES
    const start = place - (place % SLICE_BYTES)
    const length = Math.min(SLICE_BYTES, tableEntries * ENTRY_BYTES - start)
    return metadata.slice(store, storeId, tableAt + start, length).readUInt32BE(place - start)
  }

  /** Returns where the block's bitmap is, in bytes of the file; undefined where the block has no place. */
  private blockAt(index: number): number | undefined {
    const entry = this.entry(index)
    if (entry === UNALLOCATED) return undefined
    const { tableAt, tableEntries, headerAt, bitmapBytes, blockBytes } = this.blocks
    const at = entry * SECTOR_BYTES
    const end = at + bitmapBytes + blockBytes
    const liesOver = (start: number, bytes: number) => at < start + bytes && end > start
    if (
      at < SECTOR_BYTES ||
      liesOver(headerAt, DYNAMIC_HEADER_BYTES) ||
      liesOver(tableAt, wholeSectors(tableEntries * ENTRY_BYTES))
    ) {
      const what = `its block allocation table has a block over the image's own tables, at ${at}`
      throw damageOf(this.parts.store.path, what)
    }
    return at
  }

  /** Returns the extent of at most `length` bytes at `within` of a block. */
  private inBlock(blockAt: number, within: number, length: number): Extent {
    const { store, storeId, metadata } = this.parts
    const { bitmapBytes } = this.blocks
    const first = Math.floor(within / SECTOR_BYTES)
    const stop = Math.ceil((within + length) / SECTOR_BYTES)
    let isData: boolean | undefined
    let sector = first
    while (sector < stop) {
      const start = Math.floor(sector / 8 / SLICE_BYTES) * SLICE_BYTES
      const sliceBytes = Math.min(SLICE_BYTES, bitmapBytes - start)
      const bits = metadata.slice(store, storeId, blockAt + start, sliceBytes)
      const base = start * 8
      const limit = Math.min(stop, base + sliceBytes * 8)
      isData ??= isSet(bits, sector - base)
      sector = base + endOfRun(bits, sector - base, limit - base, isData)
      if (sector < limit) break
    }
    const bytes = Math.min(sector * SECTOR_BYTES - within, length)
    if (!isData) return { kind: 'zero', length: bytes }
    return { kind: 'data', length: bytes, store, at: blockAt + bitmapBytes + within }
  }
}

/** The first sector of a byte has its highest bit. */
const isSet = (bits: Buffer, bit: number): boolean =>
  ((bits[bit >> 3] as number) & (0x80 >> (bit & 7))) !== 0

/** Returns where the bits that are as `value` end, from `from` on, `to` at most. */
function endOfRun(bits: Buffer, from: number, to: number, value: boolean): number {
  const full = value ? 0xff : 0
  let bit = from
  while (bit < to && isSet(bits, bit) === value) {
    bit += (bit & 7) === 0 && bits[bit >> 3] === full ? 8 : 1
  }
  return Math.min(bit, to)
}
