/**
 * Unpacks compressed grains: a marker, then a zlib stream, padded to a sector (VMware, Virtual Disk Format 5.0,
 * "Stream-Optimized Compressed Sparse Extents").
 */
import assert from 'node:assert'
import zlib from 'node:zlib'
import { layout, u32le } from '../../binary.js'
import { ImageError } from '../../errors.js'
import { inflateZlib } from '../../io/decompressors.js'
import { clear } from '../../io/libc.js'
import type { Store } from '../../io/store.js'
import type { PackedPlace } from '../driver.js'
import { SECTOR_BYTES } from '../../sector.js'

/** The sector of the disk at which the grain begins, in two halves, and the size of the stream in bytes. */
const MARKER = layout({ lowSector: u32le, highSector: u32le, packedBytes: u32le })
assert.equal(MARKER.size, 12)

/** Returns the largest size of a stream: one that does not compress is longer than its grain. QEMU's bound is two grains. */
export const maxPackedBytes = (grainBytes: number): number => MARKER.size + 2 * grainBytes

export interface PackedGrain {
  /** The place of the marker in the file. */
  readonly at: number
  /** The expected size of the marker and the stream. If they are longer, the rest is read, too. */
  readonly packedBytes: number
  /** The place of the grain on the extent's disk. The marker must say the same. */
  readonly offset: number
  /** The least output of the stream: the part of the grain that lies on the disk. */
  readonly neededBytes: number
}

/** Fills `target`, a whole grain; zeros follow the output of a shorter stream. Throws ImageError, SystemError. */
export function unpackGrain(store: Store, grain: PackedGrain, target: Buffer): void {
  const packed = readPacked(store, grain, target.length)
  const made = inflate(packed, target)
  if (made < grain.neededBytes) {
    throw new ImageError('CORRUPT', `the compressed grain at ${grain.at} is damaged or too short`)
  }
  clear(target, made, target.length)
}

/** Does the job of a compressed grain's extent: its numbers are the fields of PackedGrain. Throws ImageError, SystemError. */
export function unpackGrainJob(store: Store, numbers: readonly number[], target: Buffer): void {
  const [at, packedBytes, offset, neededBytes] = numbers as [number, number, number, number]
  unpackGrain(store, { at, packedBytes, offset, neededBytes }, target)
}

/** Returns where the compressed bytes of such an extent lie. A stream that is longer than expected is left to `unpack`. */
export function grainPlace(numbers: readonly number[], wholeBytes: number): PackedPlace {
  const [at, length, offset, neededBytes] = numbers as [number, number, number, number]
  const streamOf = (bytes: Buffer) => {
    if (bytes.length < MARKER.size) return undefined
    const { lowSector, highSector, packedBytes } = MARKER.decode(bytes)
    const end = MARKER.size + packedBytes
    const isRight = (highSector * 2 ** 32 + lowSector) * SECTOR_BYTES === offset
    if (!isRight || packedBytes === 0 || end > maxPackedBytes(wholeBytes)) return undefined
    if (end > bytes.length) return undefined
    return { type: 'zlib' as const, bytes: bytes.subarray(MARKER.size, end), neededBytes }
  }
  return { at, length: Math.max(length, SECTOR_BYTES), streamOf }
}

/** Holds the compressed bytes; each thread has its own. */
let scratch = Buffer.alloc(0)

/** Reads the stream; valid until the next call. */
function readPacked(store: Store, grain: PackedGrain, grainBytes: number): Buffer {
  const { at } = grain
  const expected = Math.max(grain.packedBytes, SECTOR_BYTES)
  if (scratch.length < expected) scratch = Buffer.allocUnsafeSlow(expected)
  let got = store.read(scratch, 0, expected, at)
  if (got < MARKER.size) throw cutOff(at)
  const { lowSector, highSector, packedBytes } = MARKER.decode(scratch)
  const sector = highSector * 2 ** 32 + lowSector
  // A marker of size 0 belongs to a table, a directory or the footer.
  if (sector * SECTOR_BYTES !== grain.offset || packedBytes === 0) {
    const found = packedBytes === 0 ? 'no grain' : `the grain of sector ${sector}`
    const wanted = grain.offset / SECTOR_BYTES
    throw new ImageError('CORRUPT', `there is ${found} at ${at}, not that of sector ${wanted}`)
  }
  const end = MARKER.size + packedBytes
  if (end > maxPackedBytes(grainBytes)) {
    throw new ImageError('CORRUPT', `the compressed grain at ${at} has ${packedBytes} bytes`)
  }
  if (end > got) got += readRest(store, at, got, end)
  if (end > got) throw cutOff(at)
  return scratch.subarray(MARKER.size, end)
}

/** Reads on from byte `got` to `end` of the grain at `at`. Returns the bytes read. */
function readRest(store: Store, at: number, got: number, end: number): number {
  if (scratch.length < end) {
    const larger = Buffer.allocUnsafeSlow(end)
    scratch.copy(larger, 0, 0, got)
    scratch = larger
  }
  return store.read(scratch, got, end - got, at + got)
}

const cutOff = (at: number): ImageError =>
  new ImageError('CORRUPT', `the compressed grain at ${at} is cut off by the end of the file`)

/** Unpacks the stream to the start of `target`. Returns the bytes written; -1 if it is damaged or too long. */
function inflate(packed: Buffer, target: Buffer): number {
  const made = inflateZlib(packed, target)
  return made >= 0 ? made : inflateWithoutLibrary(packed, target)
}

/** Does the same without libdeflate. Exported for the tests, because most systems have the library. */
export function inflateWithoutLibrary(packed: Buffer, target: Buffer): number {
  try {
    const options = { chunkSize: target.length, maxOutputLength: target.length }
    return zlib.inflateSync(packed, options).copy(target)
  } catch {
    return -1
  }
}
