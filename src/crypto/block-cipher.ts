/**
 * AES over many blocks in one call. OpenSSL's EVP functions, which node or its libcrypto exports, fill the caller's
 * memory. Where they are missing, node:crypto does the same, but allocates what it returns.
 */
import { createCipheriv, createDecipheriv } from 'node:crypto'
import { koffi } from '../io/native.js'

export const AES_BLOCK_BYTES = 16

/** Transforms `bytes`, whole blocks of 16, at the start of `source` to the start of `target`, which may be the same. */
export type BlockTransform = (source: Buffer, target: Buffer, bytes: number) => void

/**
 * 'cbc-encrypt' starts from an initialization vector of zeros and chains from call to call. The others keep no state
 * between calls.
 */
export type Transformation = 'ecb-encrypt' | 'ecb-decrypt' | 'cbc-encrypt'

/** Makes a transform with a key of 16, 24 or 32 bytes. Only the thread that made it may use it. */
export type BlockCipherMaker = (what: Transformation, key: Buffer) => BlockTransform

const ZERO_IV = Buffer.alloc(AES_BLOCK_BYTES)

export const nodeBlockCipher: BlockCipherMaker = (what, key) => {
  const [mode, direction] = what.split('-') as ['ecb' | 'cbc', 'encrypt' | 'decrypt']
  const create = direction === 'encrypt' ? createCipheriv : createDecipheriv
  const iv = mode === 'ecb' ? null : ZERO_IV
  const cipher = create(`aes-${key.length * 8}-${mode}`, key, iv).setAutoPadding(false)
  return (source, target, bytes) => {
    cipher.update(source.length === bytes ? source : source.subarray(0, bytes)).copy(target)
  }
}

let evp: { maker: BlockCipherMaker | undefined } | undefined

/** Returns undefined if this node has no EVP functions, or if they do not compute what node:crypto computes. */
export const evpBlockCipher = (): BlockCipherMaker | undefined =>
  (evp ??= { maker: agreeing(bindEvp()) }).maker

function bindEvp(): BlockCipherMaker | undefined {
  try {
    // null means this process: official builds of node export OpenSSL; others link it as a library.
    const library = koffi.load(null)
    const create = library.func('void *EVP_CIPHER_CTX_new()')
    const free = library.func('void EVP_CIPHER_CTX_free(void *context)')
    const cipherOf = library.func('const void *EVP_get_cipherbyname(const char *name)')
    const init = library.func(
      'int EVP_CipherInit_ex(void *context, const void *cipher, void *engine, const void *key, const void *iv, int encrypts)',
    )
    const setPadding = library.func('int EVP_CIPHER_CTX_set_padding(void *context, int isOn)')
    const update = library.func(
      'int EVP_CipherUpdate(void *context, void *target, void *written, const void *source, int bytes)',
    )
    // Freeing also wipes the expanded key.
    const unused = new FinalizationRegistry<unknown>(context => free(context))
    const written = Buffer.alloc(4)
    return (what, key) => {
      const [mode, direction] = what.split('-')
      const cipher = cipherOf(`aes-${key.length * 8}-${mode}`)
      const context = create()
      if (cipher === null || context === null) throw new Error('OpenSSL has no AES')
      const encrypts = direction === 'encrypt' ? 1 : 0
      if (init(context, cipher, null, key, ZERO_IV, encrypts) !== 1) {
        free(context)
        throw new Error('OpenSSL refuses the key')
      }
      // Without padding OpenSSL holds nothing back: each call returns all blocks that it was given.
      setPadding(context, 0)
      const transform: BlockTransform = (source, target, bytes) => {
        const isDone = update(context, target, written, source, bytes) === 1
        if (!isDone || written.readInt32LE() !== bytes) throw new Error('OpenSSL: AES failed')
      }
      unused.register(transform, context)
      return transform
    }
  } catch {
    // This process has no such functions.
    return undefined
  }
}

/** Returns the maker if its results equal node:crypto's: the library that exports these names may not be OpenSSL. */
function agreeing(maker: BlockCipherMaker | undefined): BlockCipherMaker | undefined {
  if (!maker) return undefined
  const source = Buffer.from(Array.from({ length: 64 }, (_, i) => (i * 37) % 256))
  try {
    const agree = (['ecb-encrypt', 'ecb-decrypt', 'cbc-encrypt'] as const).every(what =>
      [16, 24, 32].every(keyBytes => {
        const key = source.subarray(5, 5 + keyBytes)
        const results = [maker, nodeBlockCipher].map(make => {
          const transform = make(what, key)
          const target = Buffer.alloc(64)
          transform(source, target, 32)
          transform(source.subarray(32), target.subarray(32), 32)
          return target
        })
        return results[0]!.equals(results[1]!)
      }),
    )
    return agree ? maker : undefined
  } catch {
    return undefined
  }
}
