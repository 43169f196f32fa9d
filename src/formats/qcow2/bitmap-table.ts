/**
 * A bitmap's table, and the clusters of bits that it names (QEMU docs/interop/qcow2.rst, "Bitmap table", "Bitmap data"). A
 * chunk is the cluster of bits that one entry describes.
 */
import { u64be } from '../../binary.js'
import { ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import { BITMAP_RESERVED } from './words.js'

const ENTRY_BYTES = 8

/** The entries of chunks that have no cluster. */
export const ALL_ZEROS = 0
export const ALL_ONES = 1

/** A table's entries: the place of the chunk's cluster in the file, or ALL_ZEROS, or ALL_ONES. */
export type BitmapTable = Float64Array

/** Returns how many bits a disk of `sizeBytes` takes. */
export const bitsFor = (sizeBytes: number, granularityBits: number): number =>
  Math.ceil(sizeBytes / 2 ** granularityBits)

/** Returns how many bytes of bits a disk of `sizeBytes` takes. */
export const bitmapBytesFor = (sizeBytes: number, granularityBits: number): number =>
  Math.ceil(bitsFor(sizeBytes, granularityBits) / 8)

/** Returns how many clusters a table takes. */
export const tableClusters = (tableEntries: number, clusterBytes: number): number =>
  Math.ceil((tableEntries * ENTRY_BYTES) / clusterBytes)

/** Reports whether an entry names a cluster. */
export const isCluster = (entry: number): boolean => entry > ALL_ONES

/** Reads a table, whose size the caller has bounded. Throws ImageError if it is damaged. */
export function readTable(
  store: Store,
  at: number,
  tableEntries: number,
  clusterBytes: number,
): BitmapTable {
  const damage = (message: string) => new ImageError('CORRUPT', message, { path: store.path })
  if (at === 0 || at % clusterBytes !== 0) throw damage(`its table at ${at} is not aligned`)
  const isWhole = at + tableEntries * ENTRY_BYTES <= store.sizeBytes
  // Allocate memory only for a table that the file can hold.
  const bytes = Buffer.alloc(isWhole ? tableEntries * ENTRY_BYTES : 0)
  if (!isWhole || store.read(bytes, 0, bytes.length, at) < bytes.length) {
    throw damage(`its table at ${at} lies beyond the end of the file`)
  }
  return Float64Array.from({ length: tableEntries }, (_, chunk) => {
    const high = bytes.readUInt32BE(chunk * ENTRY_BYTES)
    const low = bytes.readUInt32BE(chunk * ENTRY_BYTES + 4)
    const entry = high * 2 ** 32 + low
    const isSound =
      (high & BITMAP_RESERVED.high) === 0 &&
      (low & BITMAP_RESERVED.low) === 0 &&
      (entry <= ALL_ONES || (entry % clusterBytes === 0 && entry < store.sizeBytes))
    if (!isSound) throw damage(`entry ${chunk} of its table makes no sense`)
    return entry
  })
}

export function encodeTable(table: BitmapTable): Buffer {
  const bytes = Buffer.alloc(table.length * ENTRY_BYTES)
  table.forEach((entry, chunk) => {
    u64be.put(bytes, chunk * ENTRY_BYTES, entry)
  })
  return bytes
}

/**
 * Reads `bits` bits into `target`, which must be all zeros. Leaves out bits after them in the last chunk. Throws ImageError
 * if a chunk is cut off.
 */
export function readBits(
  store: Store,
  table: BitmapTable,
  target: Buffer,
  bits: number,
  clusterBytes: number,
): void {
  const bytes = Math.ceil(bits / 8)
  table.forEach((entry, chunk) => {
    const start = chunk * clusterBytes
    const length = Math.min(clusterBytes, bytes - start)
    if (entry === ALL_ONES) target.fill(0xff, start, start + length)
    else if (isCluster(entry) && store.read(target, start, length, entry) < length) {
      throw new ImageError('CORRUPT', `its bits at ${entry} are cut off`, { path: store.path })
    }
  })
  const inLast = bits % 8
  if (inLast !== 0) target[bytes - 1] = target[bytes - 1]! & (2 ** inLast - 1)
}
