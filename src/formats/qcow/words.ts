/**
 * The entries of L2 tables, 64 bits each, big-endian (QEMU block/qcow.c). They are read as two halves. An offset that does not
 * fit into 53 bits lies past the end of any file.
 */
import assert from 'node:assert'
import { SECTOR_BYTES } from '../../sector.js'

/** A bit of the high half of an entry: the cluster is compressed. */
export const COMPRESSED = 0x80000000

/**
 * The meaning of an entry: the cluster's place in the file, or one of these values, which are not places. Numbers, because a
 * request may have thousands of entries. Neighbours of one kind are equal, or one cluster apart.
 */
export const PARENT = -1
export const PACKED = -2
/** The entry names something outside the file, or an impossible place for a cluster. */
export const DAMAGED = -3

/** @param fileBytes the end of the image's file: a cluster that begins there or later is lost */
export function readEntry(slice: Buffer, at: number, fileBytes: number): number {
  const high = slice.readUInt32BE(at)
  if (high >= COMPRESSED) return PACKED
  const host = high * 2 ** 32 + slice.readUInt32BE(at + 4)
  if (host === 0) return PARENT
  return host % SECTOR_BYTES !== 0 || host >= fileBytes ? DAMAGED : host
}

/** Returns the 64 bits at `at`; rounded above 2^53. */
export const readWord = (slice: Buffer, at: number): number =>
  slice.readUInt32BE(at) * 2 ** 32 + slice.readUInt32BE(at + 4)

/** @param value below 2^53 */
export function writeWord(slice: Buffer, at: number, value: number): void {
  slice.writeUInt32BE(Math.floor(value / 2 ** 32), at)
  slice.writeUInt32BE(value % 2 ** 32, at + 4)
}

/**
 * Returns where the compressed bytes of an entry are. Of its 63 low bits the upper `clusterBits` give their number, and the
 * lower ones their start, at any byte of the file.
 */
export function packedAt(
  high: number,
  low: number,
  clusterBits: number,
): { at: number; packedBytes: number } {
  const highOffsets = 2 ** highOffsetBits(clusterBits)
  const bits = high - COMPRESSED
  return { at: (bits % highOffsets) * 2 ** 32 + low, packedBytes: Math.floor(bits / highOffsets) }
}

/**
 * Returns the entry for `packedBytes` compressed bytes at `at` of the file. There are fewer of them than a cluster has, and
 * `at` is below `maxPackedOffset`.
 */
export function packedEntry(
  at: number,
  packedBytes: number,
  clusterBits: number,
): { readonly high: number; readonly low: number } {
  assert(packedBytes > 0 && packedBytes < 2 ** clusterBits && at < maxPackedOffset(clusterBits))
  const bits = packedBytes * 2 ** highOffsetBits(clusterBits) + Math.floor(at / 2 ** 32)
  return { high: COMPRESSED + bits, low: at % 2 ** 32 }
}

/** Returns the end of the part of a file in which compressed bytes can begin; sums of places stay below 2^53. */
export const maxPackedOffset = (clusterBits: number): number =>
  2 ** Math.min(52, 32 + highOffsetBits(clusterBits))

/** The offset has 47 to 54 bits: all of the low half, and so many of the high half. */
const highOffsetBits = (clusterBits: number): number => 63 - clusterBits - 32
