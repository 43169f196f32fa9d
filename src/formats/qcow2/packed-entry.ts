/**
 * The L2 entry of a compressed cluster (QEMU docs/interop/qcow2.rst, "Compressed Clusters Descriptor"), as two 32-bit halves.
 * The compressed bytes begin at any byte of the file, and the entry counts the sectors that they reach into: the last one may
 * hold other bytes after them.
 */
import assert from 'node:assert'
import { COMPRESSED, COPIED } from './words.js'
import { SECTOR_BYTES } from '../../sector.js'

/** Returns how many bits of the high half belong to the offset; all 32 of the low half do. */
const highOffsetBits = (clusterBits: number): number => 62 - (clusterBits - 8) - 32

/** Returns where the compressed bytes of an entry begin in the file; rounded above 2^53. */
export const packedOffset = (high: number, low: number, clusterBits: number): number =>
  ((high & ~(COMPRESSED | COPIED)) % 2 ** highOffsetBits(clusterBits)) * 2 ** 32 + low

/** Returns how many bytes from there on an entry reaches, to the end of its last sector. */
export function packedLength(high: number, low: number, clusterBits: number): number {
  const bits = high & ~(COMPRESSED | COPIED)
  const moreSectors = Math.floor(bits / 2 ** highOffsetBits(clusterBits))
  return (moreSectors + 1) * SECTOR_BYTES - (low % SECTOR_BYTES)
}

/**
 * Returns the entry for `bytes` compressed bytes at `at` of the file. There are fewer of them than a cluster has, and `at` is
 * below `maxPackedOffset`.
 */
export function packedEntry(
  at: number,
  bytes: number,
  clusterBits: number,
): { readonly high: number; readonly low: number } {
  assert(bytes > 0 && bytes < 2 ** clusterBits && at < maxPackedOffset(clusterBits))
  const moreSectors = Math.floor((at + bytes - 1) / SECTOR_BYTES) - Math.floor(at / SECTOR_BYTES)
  const offsetHigh = Math.floor(at / 2 ** 32)
  const high = COMPRESSED + moreSectors * 2 ** highOffsetBits(clusterBits) + offsetHigh
  return { high, low: at % 2 ** 32 }
}

/** Returns the end of the part of a file in which compressed bytes can begin; sums of places stay below 2^53. */
export const maxPackedOffset = (clusterBits: number): number =>
  2 ** Math.min(52, 32 + highOffsetBits(clusterBits))
