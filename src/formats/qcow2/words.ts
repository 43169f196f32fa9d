/**
 * 64-bit table entries as two 32-bit halves (QEMU docs/interop/qcow2.rst, "Cluster mapping", "Reference counts"). An offset
 * has at most 56 bits and is a multiple of 512, so a JavaScript number represents it exactly.
 */
import type { Store } from '../../io/store.js'

/** A bit of the high half. */
export const COPIED = 0x80000000
export const COMPRESSED = 0x40000000
const OFFSET_HIGH = 0x00ffffff
/** Bits of the low half. */
const OFFSET_LOW = 0xfffffe00
export const ZERO_FLAG = 1

/** Bits of an L1 entry that must be 0. */
export const L1_RESERVED = { high: 0x7f000000, low: 0x1ff }
/** The same for an L2 entry that is not compressed; bit 0 is the zero flag. */
export const L2_RESERVED = { high: 0x3f000000, low: 0x1fe }
/** The same for an entry of a bitmap table; without an offset bit 0 means all ones. */
export const BITMAP_RESERVED = { high: 0xff000000, low: 0x1fe }
/** The same for an entry of the refcount table. */
export const REFCOUNT_TABLE_RESERVED_LOW = 0x1ff

/** Returns the host offset of an L1 or L2 entry. */
export const hostOffset = (high: number, low: number): number =>
  (high & OFFSET_HIGH) * 2 ** 32 + ((low & OFFSET_LOW) >>> 0)

/** Reports whether the host offset of an entry with the low half `low` is a multiple of `bytes`, a power of two up to 2^31. */
export const isHostAligned = (low: number, bytes: number): boolean =>
  (low & OFFSET_LOW & (bytes - 1)) === 0

/** Returns the host offset of an entry of the refcount table. It has 64 bits; large ones are rounded. */
export const blockOffset = (high: number, low: number): number =>
  high * 2 ** 32 + ((low & OFFSET_LOW) >>> 0)

/**
 * Reads `bytes` bytes at `at` and turns them into words of this machine, the high half of an entry first. Words past the end
 * of the file are 0. The words are valid until the next call with `buffer`.
 */
export function readWords(store: Store, buffer: Buffer, bytes: number, at: number): Uint32Array {
  const got = at < store.sizeBytes ? store.read(buffer, 0, bytes, at) : 0
  buffer.fill(0, got, bytes)
  buffer.subarray(0, bytes).swap32()
  return new Uint32Array(buffer.buffer, buffer.byteOffset, bytes / 4)
}

/** Returns a buffer for `readWords`. */
export const wordBuffer = (bytes: number): Buffer => Buffer.from(new ArrayBuffer(bytes))

/** Reports whether the L1 or L2 entry at `at` has the COPIED flag. */
export const isCopied = (slice: Buffer, at: number): boolean =>
  (slice.readUInt32BE(at) & COPIED) !== 0

/** Writes an L1 entry, or the first 64 bits of an L2 entry. */
export function putEntry(
  slice: Buffer,
  at: number,
  host: number,
  highFlags: number,
  lowFlags: number,
): void {
  slice.writeUInt32BE((Math.floor(host / 2 ** 32) | highFlags) >>> 0, at)
  slice.writeUInt32BE((host % 2 ** 32) + lowFlags, at + 4)
}
