/** The bitmap of a cow image: bit s % 8 of byte s / 8, lowest first, says that sector s is in the file. */
import { SLICE_BYTES } from '../../cache/metadata-cache.js'
import type { Store } from '../../io/store.js'
import { type CowHeader, SECTOR_BYTES } from './header.js'

/** How many bytes of the disk have a bit; those behind are the layer below's. */
export const mappedBytes = ({ sizeBytes, bitmapBytes }: CowHeader): number =>
  Math.min(sizeBytes, bitmapBytes * 8 * SECTOR_BYTES)

/** The first sector whose place is not, or not all, in a file of `fileBytes`; the disk's end where all are. */
export function firstLostSector({ sizeBytes, dataOffset }: CowHeader, fileBytes: number): number {
  if (fileBytes >= dataOffset + sizeBytes) return Math.ceil(sizeBytes / SECTOR_BYTES)
  return Math.max(0, Math.floor((fileBytes - dataOffset) / SECTOR_BYTES))
}

/**
 * What is read of the bitmap at once, in bytes of the file. It begins on a border of the file's, perhaps
 * within the header, and ends with the bitmap at the latest: never where data may be.
 */
export interface BitmapSlice {
  readonly at: number
  readonly length: number
}

/** The slice that has the bit of `sector`. */
export function sliceOf({ bitmapOffset, bitmapBytes }: CowHeader, sector: number): BitmapSlice {
  const byte = bitmapOffset + Math.floor(sector / 8)
  const at = byte - (byte % SLICE_BYTES)
  return { at, length: Math.min(SLICE_BYTES, bitmapOffset + bitmapBytes - at) }
}

/** Which bit of the slice at `at` is that of `sector`. */
export const bitOf = ({ bitmapOffset }: CowHeader, at: number, sector: number): number =>
  (bitmapOffset - at) * 8 + sector

export const isSet = (bytes: Buffer, bit: number): boolean =>
  (((bytes[bit >>> 3] as number) >>> (bit & 7)) & 1) !== 0

/** Where the bits from `from` on, which are all as the first one, end; `to` at most. */
export function endOfRun(bytes: Buffer, from: number, to: number): number {
  const set = isSet(bytes, from)
  let bit = from
  for (; bit < to && (bit & 7) !== 0; bit++) if (isSet(bytes, bit) !== set) return bit
  let byte = bit >>> 3
  const end = to >>> 3
  const word = set ? -1 : 0
  while (byte + 4 <= end && bytes.readInt32LE(byte) === word) byte += 4
  const whole = word & 0xff
  while (byte < end && bytes[byte] === whole) byte++
  for (bit = Math.max(bit, byte * 8); bit < to && isSet(bytes, bit) === set; ) bit++
  return bit
}

/** Sets the bits from `from` up to `to`. */
export function setBits(bytes: Buffer, from: number, to: number): void {
  let bit = from
  for (; bit < to && (bit & 7) !== 0; bit++) setBit(bytes, bit)
  if (bit < to) bytes.fill(0xff, bit >>> 3, to >>> 3)
  for (bit = Math.max(bit, to - (to & 7)); bit < to; bit++) setBit(bytes, bit)
}

function setBit(bytes: Buffer, bit: number): void {
  bytes[bit >>> 3]! |= 1 << (bit & 7)
}

/** Read at once by `walkBitmap`. */
const CHUNK_BYTES = 64 * 1024

/**
 * Calls `visit` for each run of sectors of one kind, in their order, from `from` on; runs of a kind may follow
 * each other. Holes of the file are passed over, so that it takes what the bitmap takes on its disk. Stops
 * where `visit` returns false. Throws SystemError.
 */
export function walkBitmap(
  store: Store,
  header: CowHeader,
  from: number,
  visit: (isMarked: boolean, first: number, end: number) => boolean,
): void {
  const sectors = Math.ceil(mappedBytes(header) / SECTOR_BYTES)
  const chunk = Buffer.alloc(CHUNK_BYTES)
  for (let first = from; first < sectors; ) {
    const silent = silentSectors(store, header, first, sectors)
    if (silent > 0) {
      if (!visit(false, first, first + silent)) return
      first += silent
      continue
    }
    const start = first - (first % 8)
    const end = Math.min(sectors, start + CHUNK_BYTES * 8)
    // What a file that became shorter has lost reads as zeros; who reads the disk is told.
    const wanted = Math.ceil((end - start) / 8)
    chunk.fill(0, store.read(chunk, 0, wanted, header.bitmapOffset + start / 8), wanted)
    while (first < end) {
      const stop = start + endOfRun(chunk, first - start, end - start)
      if (!visit(isSet(chunk, first - start), first, stop)) return
      first = stop
    }
  }
}

/** How many sectors from `first` on have their bits in a hole of the file. */
function silentSectors(store: Store, header: CowHeader, first: number, sectors: number): number {
  const byte = header.bitmapOffset + Math.floor(first / 8)
  const data = store.nextData(byte)
  if (data < 0) return sectors - first
  return data === byte ? 0 : Math.min(sectors, (data - header.bitmapOffset) * 8) - first
}
