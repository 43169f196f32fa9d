/** How the data of an image are encrypted: plain data, which the threads get as a message. */

export const CIPHER_MODES = ['xts', 'cbc', 'ecb'] as const
export type CipherMode = (typeof CIPHER_MODES)[number]
/** How the initialization vector of a sector is made of its number; 'none' for ecb. */
export const IV_GENERATORS = ['none', 'plain', 'plain64', 'essiv'] as const
export type IvGenerator = (typeof IV_GENERATORS)[number]

/** AES of a kind, with its key. */
export interface CipherSpec {
  readonly mode: CipherMode
  readonly ivGenerator: IvGenerator
  /** The hash that essiv makes its key with, by the name that node:crypto has for it. */
  readonly ivHash: string | undefined
  /**
   * The key: 16, 24 or 32 bytes, and twice as many for xts, whose second half is for the tweaks. All threads
   * have the same.
   */
  readonly key: SharedArrayBuffer
}

/** The bytes that an initialization vector counts by, whatever the sectors of the disk are. */
export const CIPHER_SECTOR_BYTES = 512

/**
 * Encrypts and decrypts whole sectors. One object serves one thread, and keeps no state between calls
 * but its expanded keys and its scratch memory.
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
  /** The other way round. */
  decrypt(
    source: Buffer,
    start: number,
    length: number,
    target: Buffer,
    at: number,
    sector: number,
  ): void
}
