/**
 * Compressed grains: a marker, then a zlib stream, padded to a sector (VMware, Virtual Disk Format
 * 5.0, "Stream-Optimized Compressed Sparse Extents").
 */
import assert from 'node:assert'
import zlib from 'node:zlib'
import { layout, u32le } from '../../binary.js'
import { ImageError } from '../../errors.js'
import { inflateZlib } from '../../io/decompressors.js'
import { clear } from '../../io/libc.js'
import type { Store } from '../../io/store.js'
import { SECTOR_BYTES } from './parts.js'

/** The sector of the disk that the grain begins at, in two halves, and the bytes of the stream. */
const MARKER = layout({ lowSector: u32le, highSector: u32le, packedBytes: u32le })
assert.equal(MARKER.size, 12)

/** A stream that could not make its grain smaller is longer than it; two grains are QEMU's bound. */
export const maxPackedBytes = (grainBytes: number): number => MARKER.size + 2 * grainBytes

export interface PackedGrain {
  /** Where the marker is in the file. */
  readonly at: number
  /** What the marker and the stream are expected to take; what they take more is read, too. */
  readonly packedBytes: number
  /** Where the grain is on the extent's disk. The marker has to say the same. */
  readonly offset: number
  /** What the stream has to make at least: all of the grain that lies on the disk. */
  readonly neededBytes: number
}

/** Fills `target`, a whole grain; zeros follow what a shorter stream makes. Throws ImageError, SystemError. */
export function unpackGrain(store: Store, grain: PackedGrain, target: Buffer): void {
  const packed = readPacked(store, grain, target.length)
  const made = inflate(packed, target)
  if (made < grain.neededBytes) {
    throw new ImageError('CORRUPT', `the compressed grain at ${grain.at} is damaged or too short`)
  }
  clear(target, made, target.length)
}

/** What was read last; each thread has one. */
let scratch = Buffer.alloc(0)

/** The stream, valid until the next call. */
function readPacked(store: Store, grain: PackedGrain, grainBytes: number): Buffer {
  const { at } = grain
  const expected = Math.max(grain.packedBytes, SECTOR_BYTES)
  if (scratch.length < expected) scratch = Buffer.allocUnsafeSlow(expected)
  let got = store.read(scratch, 0, expected, at)
  if (got < MARKER.size) throw cutOff(at)
  const { lowSector, highSector, packedBytes } = MARKER.decode(scratch)
  const sector = highSector * 2 ** 32 + lowSector
  // A marker of size 0 is of a table, a directory or the footer.
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

/** Reads on from `got` to `end` of what is at `at`; the bytes read. */
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

/** Bytes that the stream makes at the start of `target`; -1 when it is damaged or makes more. */
function inflate(packed: Buffer, target: Buffer): number {
  const made = inflateZlib(packed, target)
  return made >= 0 ? made : inflateWithoutLibrary(packed, target)
}

/** Exported for the tests: most systems have the library. */
export function inflateWithoutLibrary(packed: Buffer, target: Buffer): number {
  try {
    const options = { chunkSize: target.length, maxOutputLength: target.length }
    return zlib.inflateSync(packed, options).copy(target)
  } catch {
    return -1
  }
}
