/** The bitmap of a cow image: bit s % 8 of byte s / 8, lowest first, means that sector s is in the file. */
import { SLICE_BYTES } from '../../cache/table-pool.js'
import type { Store } from '../../io/store.js'
import type { CowHeader } from './header.js'
import { SECTOR_BYTES } from '../../sector.js'

/** Returns how many bytes of the disk have a bit. Bytes after them are read from the backing file. */
export const mappedBytes = ({ sizeBytes, bitmapBytes }: CowHeader): number =>
  Math.min(sizeBytes, bitmapBytes * 8 * SECTOR_BYTES)

/** Returns the first sector that does not lie completely in a file of `fileBytes`; the end of the disk if all do. */
export function firstLostSector({ sizeBytes, dataOffset }: CowHeader, fileBytes: number): number {
  if (fileBytes >= dataOffset + sizeBytes) return Math.ceil(sizeBytes / SECTOR_BYTES)
  return Math.max(0, Math.floor((fileBytes - dataOffset) / SECTOR_BYTES))
}

/**
 * The part of the bitmap that is read at once, in bytes of the file. It begins at an aligned place of the file, perhaps
 * within the header. It never contains data, because it ends with the bitmap at the latest.
 */
export interface BitmapSlice {
  readonly at: number
  readonly length: number
}

/** Returns the slice that contains the bit of `sector`. */
export function sliceOf({ bitmapOffset, bitmapBytes }: CowHeader, sector: number): BitmapSlice {
  const byte = bitmapOffset + Math.floor(sector / 8)
  const at = byte - (byte % SLICE_BYTES)
  return { at, length: Math.min(SLICE_BYTES, bitmapOffset + bitmapBytes - at) }
}

/** Returns the index of the bit of `sector` in the slice at `at`. */
export const bitOf = ({ bitmapOffset }: CowHeader, at: number, sector: number): number =>
  (bitmapOffset - at) * 8 + sector

export const isSet = (bytes: Buffer, bit: number): boolean =>
  (((bytes[bit >>> 3] as number) >>> (bit & 7)) & 1) !== 0

/** Returns the end of the run of equal bits that begins at `from`; at most `to`. */
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

/** How much `walkBitmap` reads at once. */
const CHUNK_BYTES = 64 * 1024

/**
 * Calls `visit` for each run of sectors of one kind, in order, from `from` on. Two runs of one kind may follow each other. It
 * skips holes of the file, so its cost depends on the space that the bitmap takes on disk. Stops if `visit` returns false.
 * Throws SystemError.
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
    const unallocated = unallocatedSectors(store, header, first, sectors)
    if (unallocated > 0) {
      if (!visit(false, first, first + unallocated)) return
      first += unallocated
      continue
    }
    const start = first - (first % 8)
    const end = Math.min(sectors, start + CHUNK_BYTES * 8)
    // If the file has become shorter, the lost part counts as zeros here; reading the disk reports it.
    const wanted = Math.ceil((end - start) / 8)
    chunk.fill(0, store.read(chunk, 0, wanted, header.bitmapOffset + start / 8), wanted)
    while (first < end) {
      const stop = start + endOfRun(chunk, first - start, end - start)
      if (!visit(isSet(chunk, first - start), first, stop)) return
      first = stop
    }
  }
}

/** Returns how many sectors from `first` on have their bits in a hole of the file. */
function unallocatedSectors(
  store: Store,
  header: CowHeader,
  first: number,
  sectors: number,
): number {
  const byte = header.bitmapOffset + Math.floor(first / 8)
  const data = store.nextData(byte)
  if (data < 0) return sectors - first
  return data === byte ? 0 : Math.min(sectors, (data - header.bitmapOffset) * 8) - first
}
