/**
 * The system's own decompressors, where it has them. They write to the reader's buffer, and are faster than ours.
 * libzstd is on every Debian (dpkg needs it), libdeflate on many. Where they are missing or refuse a stream, the callers
 * have another way.
 */
import type { LibraryHandle } from 'koffi'
import { koffi } from './native.js'

/** The names of the libraries' files. */
export const LIBDEFLATE: readonly string[] = ['libdeflate.so.0', 'libdeflate.so.1']
export const LIBZSTD: readonly string[] = ['libzstd.so.1']

/**
 * Fills `target` with the raw deflate stream at the start of `packed`; bytes after the stream are ignored. Returns false
 * if the stream is damaged or does not fill `target` exactly, or if there is no library; `target` may then hold anything.
 */
export const inflateExactly: (packed: Buffer, target: Buffer) => boolean =
  firstLibrary(LIBDEFLATE, libdeflate) ?? (() => false)

/**
 * Decompresses the zlib stream (RFC 1950) at the start of `packed` to the start of `target`; bytes after the stream are
 * ignored. Returns the bytes written; -1 if the stream is damaged or holds more, or if there is no library; `target` may
 * then hold anything.
 */
export const inflateZlib: (packed: Buffer, target: Buffer) => number =
  firstLibrary(LIBDEFLATE, libdeflateZlib) ?? (() => -1)

/**
 * Decompresses the zstd frame `frame` to the start of `target`. Returns the bytes written, or -1 if the frame is damaged
 * or holds more. Undefined if there is no library.
 */
export const unzstdFrame: ((frame: Buffer, target: Buffer) => number) | undefined = firstLibrary(
  LIBZSTD,
  libzstd,
)

/** Returns what `bind` makes of the first of the libraries `names` that this machine has; undefined if it has none. */
export function firstLibrary<T>(
  names: readonly string[],
  bind: (library: LibraryHandle) => T,
): T | undefined {
  for (const name of names) {
    try {
      return bind(koffi.load(name))
    } catch {
      // This library is missing, or is not what its name says.
    }
  }
  return undefined
}

function libdeflate(library: LibraryHandle): (packed: Buffer, target: Buffer) => boolean {
  const decompressor = library.func('void *libdeflate_alloc_decompressor()')()
  const decompress = library.func(
    'int libdeflate_deflate_decompress_ex(void *decompressor, const void *packed, size_t packedBytes, void *target, size_t targetBytes, void *used, void *filled)',
  )
  const used = Buffer.alloc(8)
  // Without a pointer for the actual length, libdeflate reports an error unless it fills all of `target`.
  return (packed, target) =>
    decompress(decompressor, packed, packed.length, target, target.length, used, null) === 0
}

function libdeflateZlib(library: LibraryHandle): (packed: Buffer, target: Buffer) => number {
  const decompressor = library.func('void *libdeflate_alloc_decompressor()')()
  const decompress = library.func(
    'int libdeflate_zlib_decompress_ex(void *decompressor, const void *packed, size_t packedBytes, void *target, size_t targetBytes, void *used, void *filled)',
  )
  const used = Buffer.alloc(8)
  const filled = Buffer.alloc(8)
  // The count is at most the length of `target`, so its low half says it all.
  return (packed, target) =>
    decompress(decompressor, packed, packed.length, target, target.length, used, filled) === 0
      ? filled.readUInt32LE()
      : -1
}

function libzstd(library: LibraryHandle): (frame: Buffer, target: Buffer) => number {
  const context = library.func('void *ZSTD_createDCtx()')()
  const decompress = library.func(
    'size_t ZSTD_decompressDCtx(void *context, void *target, size_t targetBytes, const void *frame, size_t frameBytes)',
  )
  // An error is a size_t near its maximum, far above the length of any buffer.
  return (frame, target) => {
    const written = Number(decompress(context, target, target.length, frame, frame.length))
    return written <= target.length ? written : -1
  }
}
