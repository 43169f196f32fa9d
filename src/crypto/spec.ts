/** How the data of an image are encrypted. Plain data, so that it can be sent to threads as a message. */

export const CIPHER_MODES = ['xts', 'cbc', 'ecb'] as const
export type CipherMode = (typeof CIPHER_MODES)[number]
/** How the initialization vector of a sector is made from its number; 'none' for ecb. */
const IV_GENERATORS = ['none', 'plain', 'plain64', 'essiv'] as const
export type IvGenerator = (typeof IV_GENERATORS)[number]

/** AES in one mode, with its key. */
export interface CipherSpec {
  readonly mode: CipherMode
  readonly ivGenerator: IvGenerator
  /** The hash that makes the key of essiv, by node:crypto's name. */
  readonly ivHash: string | undefined
  /**
   * The key: 16, 24 or 32 bytes, or twice as many for xts, where the second half is for the tweaks. All threads share
   * this memory.
   */
  readonly key: SharedArrayBuffer
}

/** The size of the sectors that initialization vectors count, in bytes, whatever size the disk's sectors have. */
export const CIPHER_SECTOR_BYTES = 512

/**
 * Encrypts and decrypts whole sectors. One object serves one thread. Between calls it keeps only its expanded keys and
 * its scratch memory.
 */
export interface SectorCipher {
  /**
   * Encrypts `length` bytes, a multiple of 512 above 0, of `source` from `start` on into `target` from
   * `at` on. `source` and `target` may be the same memory if `start` is `at` too.
   * @param sector the number of the first sector, 0 to 2^53 - 1
   */
  encrypt(
    source: Buffer,
    start: number,
    length: number,
    target: Buffer,
    at: number,
    sector: number,
  ): void
  /** Decrypts; the parameters are those of `encrypt`. */
  decrypt(
    source: Buffer,
    start: number,
    length: number,
    target: Buffer,
    at: number,
    sector: number,
  ): void
}
