/**
 * libdeflate, where the system has it: it inflates a cluster in two thirds of zlib's time, and straight
 * into the reader's buffer. Only whole, well-formed streams that fill their buffer are its business;
 * zlib has the say on all others.
 */
import koffi from 'koffi'

/** Sonames: Debian 12 and older, later ones. */
const LIBRARIES = ['libdeflate.so.0', 'libdeflate.so.1']
const SUCCESS = 0

type Inflate = (packed: Buffer, target: Buffer) => boolean

/**
 * Fills `target` with the raw deflate stream at the start of `packed`; bytes behind it are ignored.
 * False when the stream is damaged or does not fill it exactly, or when there is no library; `target`
 * may then hold anything.
 */
export const inflateExactly: Inflate = load() ?? (() => false)

function load(): Inflate | undefined {
  for (const name of LIBRARIES) {
    try {
      const library = koffi.load(name)
      const allocate = library.func('void *libdeflate_alloc_decompressor()')
      const decompress = library.func(
        'int libdeflate_deflate_decompress_ex(void *decompressor, const void *packed, size_t packedBytes, void *target, size_t targetBytes, void *used, void *filled)',
      )
      const decompressor = allocate()
      if (!decompressor) return undefined
      const used = Buffer.alloc(8)
      // Where no place for the filled bytes is given, less than all of them is an error.
      return (packed, target) =>
        decompress(decompressor, packed, packed.length, target, target.length, used, null) ===
        SUCCESS
    } catch {
      // This soname is not there.
    }
  }
  return undefined
}
