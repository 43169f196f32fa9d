/**
 * A thread's scratch memory, in which sectors are masked: the part of an encryption mode that is not AES.
 *
 * Words are little-endian, as on every processor that koffi runs on.
 */
import { AES_BLOCK_BYTES } from './block-cipher.js'
import { CIPHER_SECTOR_BYTES } from './spec.js'

/** Sectors that are handled at once: data and masks then fit in a processor's second-level cache. */
export const WORKSPACE_SECTORS = 128
const DATA_BYTES = WORKSPACE_SECTORS * CIPHER_SECTOR_BYTES

/** The start of each part, in bytes. */
export const WORKSPACE = {
  data: 0,
  masks: DATA_BYTES,
  // CBC needs one more block: it decrypts each block with the one before.
  ivs: 2 * DATA_BYTES + AES_BLOCK_BYTES,
  end: 2 * DATA_BYTES + AES_BLOCK_BYTES * (1 + WORKSPACE_SECTORS),
} as const

export interface Workspace {
  readonly memory: Buffer
  /**
   * Expands the tweaks of the first `sectors` sectors (at least one) in `ivs` to one mask for each block, puts these into
   * `masks`, and XORs them to `data` (IEEE 1619-2007, section 5.3.2 and figure 2).
   */
  addTweaks(sectors: number): void
  /** XORs the first `bytes` bytes of `masks`, a multiple of 64 above 0, to `data`. */
  addMasks(bytes: number): void
}

const WORD_BYTES = 4
const SECTOR_WORDS = CIPHER_SECTOR_BYTES / WORD_BYTES
const DATA = WORKSPACE.data / WORD_BYTES
const MASKS = WORKSPACE.masks / WORD_BYTES
const IVS = WORKSPACE.ivs / WORD_BYTES
/** The value that is XORed to a doubled tweak when doubling shifts a bit out (IEEE 1619-2007, section 5.2). */
export const TWEAK_FEEDBACK = 0x87

export function plainWorkspace(): Workspace {
  const memory = Buffer.alloc(WORKSPACE.end)
  const words = new Uint32Array(memory.buffer, memory.byteOffset, memory.length / WORD_BYTES)
  return {
    memory,
    addTweaks: sectors => {
      for (let sector = 0; sector < sectors; sector++) {
        const iv = IVS + sector * 4
        let t0 = words[iv]!
        let t1 = words[iv + 1]!
        let t2 = words[iv + 2]!
        let t3 = words[iv + 3]!
        const end = DATA + (sector + 1) * SECTOR_WORDS
        for (let at = end - SECTOR_WORDS; at < end; at += 4) {
          const mask = MASKS - DATA + at
          words[mask] = t0
          words[mask + 1] = t1
          words[mask + 2] = t2
          words[mask + 3] = t3
          words[at]! ^= t0
          words[at + 1]! ^= t1
          words[at + 2]! ^= t2
          words[at + 3]! ^= t3
          const shiftedOut = t3 >>> 31
          t3 = (t3 << 1) | (t2 >>> 31)
          t2 = (t2 << 1) | (t1 >>> 31)
          t1 = (t1 << 1) | (t0 >>> 31)
          t0 = (t0 << 1) ^ (shiftedOut * TWEAK_FEEDBACK)
        }
      }
    },
    addMasks: bytes => {
      const end = DATA + bytes / WORD_BYTES
      for (let at = DATA; at < end; at++) words[at]! ^= words[MASKS - DATA + at]!
    },
  }
}
