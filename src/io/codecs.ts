/**
 * Compresses and decompresses in the threads of libuv's pool, by the system's libraries where it has them: libdeflate and
 * libzstd. A call takes one context; contexts are made when they are needed, and there are a few more of them than threads, so
 * that each thread finds its next call waiting.
 */
import { availableParallelism } from 'node:os'
import { promisify } from 'node:util'
import zlib from 'node:zlib'
import type { LibraryHandle } from 'koffi'
import { firstLibrary, LIBDEFLATE, LIBZSTD } from './decompressors.js'

/** deflate: a raw stream (RFC 1951). zlib: with header and checksum (RFC 1950). zstd: one frame (RFC 8878). */
export type PackingType = 'deflate' | 'zlib' | 'zstd'

/** Compresses `source` to the start of `target`. Returns the bytes written; 0 if `target` is too small. */
export type Pack = (source: Buffer, target: Buffer) => Promise<number>

/** Decompresses `packed` to the start of `target`. Returns the bytes written; -1 if that fails. */
export type Unpack = (packed: Buffer, target: Buffer) => Promise<number>

/**
 * The level at which libdeflate makes clusters that are not larger than those of qemu-img, at the highest speed. It searches
 * 32 KiB back, qemu-img 4 KiB; readers take both, because they decompress a whole cluster at once.
 */
const DEFLATE_LEVEL = 4
const ZLIB_LEVEL = 6
const ZSTD_LEVEL = 3

/** The threads of libuv's pool are four, unless the environment says otherwise. */
const poolThreads = (): number => Number(process.env.UV_THREADPOOL_SIZE ?? 4) || 4
/** How many calls are given to the pool at once. */
export const callsAtOnce = (): number => Math.max(availableParallelism(), poolThreads()) + 2

interface Context {
  readonly pointer: unknown
  /** Results of 8 bytes each. */
  readonly used: Buffer
  readonly filled: Buffer
}

/** Contexts of a library; a call that finds none free waits for one. */
class Contexts {
  private readonly free: Context[] = []
  private readonly waiting: ((context: Context) => void)[] = []
  private missing = callsAtOnce()

  constructor(private readonly make: () => unknown) {}

  /** @param read returns the result; the next call may change the context right after it */
  async run(
    call: (context: Context, done: Done) => void,
    read: (result: number, context: Context) => number,
  ): Promise<number> {
    const context = await this.take()
    return new Promise((resolve, reject) => {
      call(context, (error, result) => {
        const value = read(Number(result), context)
        this.give(context)
        if (error) reject(error)
        else resolve(value)
      })
    })
  }

  private take(): Context | Promise<Context> {
    const free = this.free.pop()
    if (free) return free
    if (this.missing > 0) {
      this.missing--
      return { pointer: this.make(), used: Buffer.alloc(8), filled: Buffer.alloc(8) }
    }
    return new Promise(resolve => void this.waiting.push(resolve))
  }

  private give(context: Context): void {
    const next = this.waiting.shift()
    if (next) next(context)
    else this.free.push(context)
  }
}

type Done = (error: unknown, result: unknown) => void

/** Returns the compressor; undefined if this machine has none for `type`. */
export function packer(type: PackingType): Pack | undefined {
  if (type === 'zstd') return firstLibrary(LIBZSTD, zstdPacker) ?? nodeZstd()
  return firstLibrary(LIBDEFLATE, library => deflatePacker(library, type)) ?? zlibPacker(type)
}

function deflatePacker(library: LibraryHandle, type: 'deflate' | 'zlib'): Pack {
  const alloc = library.func('void *libdeflate_alloc_compressor(int level)')
  const compress = library.func(
    `size_t libdeflate_${type}_compress(void *compressor, const void *source, size_t bytes, void *target, size_t targetBytes)`,
  )
  const contexts = new Contexts(() => alloc(DEFLATE_LEVEL))
  return (source, target) =>
    contexts.run(
      ({ pointer }, done) =>
        compress.async(pointer, source, source.length, target, target.length, done),
      written => written,
    )
}

function zstdPacker(library: LibraryHandle): Pack {
  const create = library.func('void *ZSTD_createCCtx()')
  const compress = library.func(
    'size_t ZSTD_compressCCtx(void *context, void *target, size_t targetBytes, const void *source, size_t bytes, int level)',
  )
  const contexts = new Contexts(() => create())
  return (source, target) =>
    contexts.run(
      ({ pointer }, done) =>
        compress.async(pointer, target, target.length, source, source.length, ZSTD_LEVEL, done),
      // An error is a size_t near its maximum.
      written => (written <= target.length ? written : 0),
    )
}

/** Exported for the tests, because most systems have the library. */
export function zlibPacker(type: 'deflate' | 'zlib'): Pack {
  const options = { level: ZLIB_LEVEL, memLevel: 9 }
  const compress =
    type === 'zlib' ? promisify<Buffer, object, Buffer>(zlib.deflate) : deflateRawPromised
  return async (source, target) => fit(await compress(source, options), target)
}
const deflateRawPromised = promisify<Buffer, object, Buffer>(zlib.deflateRaw)

/** Returns the compressor of a Node that has zstd itself. */
function nodeZstd(): Pack | undefined {
  const { zstdCompress } = zlib as { zstdCompress?: typeof zlib.deflate }
  if (!zstdCompress) return undefined
  const compress = promisify<Buffer, object, Buffer>(zstdCompress)
  return async (source, target) => fit(await compress(source, {}), target)
}

function fit(packed: Buffer, target: Buffer): number {
  return packed.length <= target.length ? packed.copy(target) : 0
}

export interface Unpackers {
  /** For raw deflate. The stream must fill the target exactly; bytes after it are ignored. */
  readonly deflate: Unpack | undefined
  /** For zlib; bytes after the stream are ignored. */
  readonly zlib: Unpack | undefined
  /** For one zstd frame, and nothing after it. */
  readonly zstd: Unpack | undefined
}

/** Returns the decompressors that this machine has. What they refuse may still be good: ask the driver then. */
export function unpackers(): Unpackers {
  return {
    deflate: firstLibrary(LIBDEFLATE, library => inflater(library, 'deflate')),
    zlib: firstLibrary(LIBDEFLATE, library => inflater(library, 'zlib')),
    zstd: firstLibrary(LIBZSTD, unzstd),
  }
}

function inflater(library: LibraryHandle, type: 'deflate' | 'zlib'): Unpack {
  const alloc = library.func('void *libdeflate_alloc_decompressor()')
  const decompress = library.func(
    `int libdeflate_${type}_decompress_ex(void *decompressor, const void *packed, size_t packedBytes, void *target, size_t targetBytes, void *used, void *filled)`,
  )
  const contexts = new Contexts(() => alloc())
  const isExact = type === 'deflate'
  return (packed, target) => {
    const { length } = packed
    return contexts.run(
      ({ pointer, used, filled }, done) => {
        const counted = isExact ? null : filled
        decompress.async(pointer, packed, length, target, target.length, used, counted, done)
      },
      (result, { filled }) => {
        if (result !== 0) return -1
        return isExact ? target.length : filled.readUInt32LE()
      },
    )
  }
}

function unzstd(library: LibraryHandle): Unpack {
  const create = library.func('void *ZSTD_createDCtx()')
  const decompress = library.func(
    'size_t ZSTD_decompressDCtx(void *context, void *target, size_t targetBytes, const void *frame, size_t frameBytes)',
  )
  const contexts = new Contexts(() => create())
  return (frame, target) =>
    contexts.run(
      ({ pointer }, done) =>
        decompress.async(pointer, target, target.length, frame, frame.length, done),
      written => (written <= target.length ? written : -1),
    )
}
