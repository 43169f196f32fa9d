/**
 * Unpacks compressed clusters: raw deflate and zstd, both leniently but with bounds (QEMU docs/interop/qcow2.rst, "Compressed
 * Clusters Descriptor").
 */
import { createRequire } from 'node:module'
import zlib from 'node:zlib'
import type * as fzstd from 'fzstd'
import { ImageError } from '../errors.js'
import { inflateExactly, unzstdFrame } from '../io/decompressors.js'
import type { Store } from '../io/store.js'

const { Z_SYNC_FLUSH } = zlib.constants

export type Compression = 'zlib' | 'zstd'

/** Fills `cluster` from the compressed bytes at the start of `packed`. Throws ImageError. */
type Unpack = (packed: Buffer, cluster: Buffer) => void

/**
 * Fills `cluster` from `packedBytes` bytes of `store` at `at`; the file may end before the last of them. Throws ImageError,
 * SystemError.
 */
export function unpackFrom(
  store: Store,
  at: number,
  packedBytes: number,
  compression: Compression,
  cluster: Buffer,
): void {
  if (at >= store.sizeBytes) {
    const what = `a compressed cluster at ${at} lies beyond the end of the file`
    throw new ImageError('CORRUPT', what)
  }
  if (scratch.length < packedBytes) scratch = Buffer.allocUnsafeSlow(packedBytes)
  const got = store.read(scratch, 0, packedBytes, at)
  const unpack = compression === 'zstd' ? unzstdCluster : inflateCluster
  unpack(scratch.subarray(0, got), cluster)
}

/** Holds the compressed bytes; each thread has its own. */
let scratch = Buffer.alloc(0)

/**
 * Unpacks raw deflate. What follows the stream belongs to other clusters. A stream that fills the cluster is good, even if it
 * goes on or is broken after that. A stream that ends or is broken earlier is damage.
 */
export const inflateCluster: Unpack = (packed, cluster) => {
  if (inflateExactly(packed, cluster)) return
  const bytes = inflatePrefix(packed, cluster.length) ?? inflateShorter(packed, cluster.length)
  if (bytes.length < cluster.length) throw damaged()
  bytes.copy(cluster, 0, 0, cluster.length)
}

/** How far a stream may go past its cluster in one call of zlib: more than one byte of input makes. */
const SLACK_BYTES = 4096

/** Returns the output of the stream in `packed`; undefined if it is broken, or too long. */
function inflatePrefix(packed: Buffer, clusterBytes: number): Buffer | undefined {
  try {
    return zlib.inflateRawSync(packed, {
      finishFlush: Z_SYNC_FLUSH,
      chunkSize: clusterBytes + SLACK_BYTES,
      maxOutputLength: clusterBytes + SLACK_BYTES,
    })
  } catch {
    return undefined
  }
}

/**
 * Returns the cluster of a stream that goes on, or is broken, after it. A call of zlib returns everything or nothing. So this
 * searches for a prefix of the input that fills the cluster, and not much more: a byte of input makes 1032 bytes of output
 * at most.
 */
function inflateShorter(packed: Buffer, clusterBytes: number): Buffer {
  let tooShort = 0
  let tooLong = packed.length
  while (tooLong - tooShort > 1) {
    const middle = Math.floor((tooShort + tooLong) / 2)
    const bytes = inflatePrefix(packed.subarray(0, middle), clusterBytes)
    if (bytes && bytes.length >= clusterBytes) return bytes
    if (bytes) tooShort = middle
    else tooLong = middle
  }
  throw damaged()
}

const ZSTD_MAGIC = 0xfd2fb528
const ZSTD_SKIPPABLE = 0x184d2a50
/** The largest window that a frame may ask for; RFC 8878 recommends to support 8 MiB and to set a limit. */
const MAX_ZSTD_WINDOW_BYTES = 8 * 2 ** 20
/** The most frames of a cluster. Writers make one. An empty frame makes the decoder allocate its window for nothing. */
const MAX_ZSTD_FRAMES = 1024

/**
 * Unpacks zstd, in one or several frames. Every frame up to the one that fills the cluster must be complete. What follows
 * belongs to other clusters.
 */
export const unzstdCluster: Unpack = (packed, cluster) => {
  let filled = 0
  let frames = 0
  for (let at = 0; filled < cluster.length; ) {
    if (++frames > MAX_ZSTD_FRAMES) throw damaged()
    const frame = packed.subarray(at, at + zstdFrameBytes(packed, at))
    filled += unzstd(frame, cluster.subarray(filled))
    at += frame.length
  }
}

/**
 * Unpacks `frame` to `target`. Returns the bytes written. A frame with more content is damage, and is not decoded further.
 */
function unzstd(frame: Buffer, target: Buffer): number {
  const written = unzstdFrame ? unzstdFrame(frame, target) : unzstdWithoutLibrary(frame, target)
  if (written < 0) throw damaged()
  return written
}

/** Loads fzstd. A mount must not find out later that it is missing. */
const loadFzstd = (): typeof fzstd => createRequire(import.meta.url)('fzstd')
if (!unzstdFrame) loadFzstd()

/** Does the same without libzstd. Exported for the tests, because most systems have the library. */
export function unzstdWithoutLibrary(frame: Buffer, target: Buffer): number {
  let written = 0
  const { Decompress } = loadFzstd()
  const decoder = new Decompress(part => {
    if (written + part.length > target.length) throw damaged()
    target.set(part, written)
    written += part.length
  })
  try {
    decoder.push(frame, true)
  } catch {
    return -1
  }
  return written
}

/** Returns the zstd frame at the start of `packed`; undefined if there is no whole and sound one. */
export function zstdFrame(packed: Buffer): Buffer | undefined {
  try {
    return packed.subarray(0, zstdFrameBytes(packed, 0))
  } catch {
    return undefined
  }
}

/**
 * Returns the length of the zstd frame at `at` in bytes, from its blocks' headers (RFC 8878, 3.1.1). Decoders differ in
 * whether they refuse or skip bytes after a frame, so they get exactly one frame.
 */
function zstdFrameBytes(b: Buffer, at: number): number {
  const need = (end: number) => {
    if (end > b.length) throw damaged()
  }
  need(at + 8)
  const magic = b.readUInt32LE(at)
  if ((magic & 0xfffffff0) >>> 0 === ZSTD_SKIPPABLE) {
    const end = at + 8 + b.readUInt32LE(at + 4)
    need(end)
    return end - at
  }
  if (magic !== ZSTD_MAGIC) throw damaged()
  const descriptor = b.readUInt8(at + 4)
  const singleSegment = (descriptor >> 5) & 1
  const contentSizeBytes = [singleSegment, 2, 4, 8][descriptor >> 6] as number
  if (!singleSegment) {
    const window = b.readUInt8(at + 5)
    const base = 2 ** (10 + (window >> 3))
    if (base + (base / 8) * (window & 7) > MAX_ZSTD_WINDOW_BYTES) throw damaged()
  }
  const dictionaryBytes = [0, 1, 2, 4][descriptor & 3] as number
  let end = at + 5 + (1 - singleSegment) + dictionaryBytes + contentSizeBytes
  for (let last = false; !last; ) {
    need(end + 3)
    const header = b.readUIntLE(end, 3)
    const type = (header >> 1) & 3
    if (type === 3) throw damaged()
    last = (header & 1) === 1
    // A run-length block stores one byte.
    end += 3 + (type === 1 ? 1 : header >> 3)
    need(end)
  }
  if (descriptor & 4) end += 4
  need(end)
  return end - at
}

function damaged(): ImageError {
  return new ImageError('CORRUPT', 'a compressed cluster is damaged or cut off')
}
