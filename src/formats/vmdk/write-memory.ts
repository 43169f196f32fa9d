/** The memory that the threads share that write a VMDK image; see disk-memory.ts. */
import type { VmdkSpec } from './open.js'

export interface VmdkMemory {
  /** DISK_WORDS words, and one for each extent: whether it was written since it was last synced. */
  readonly words: SharedArrayBuffer
}

/** The words of the disk; those of its extents follow. */
export const DISK = {
  /** Whether the descriptor has this mount's CID. */
  hasCid: 0,
  /** How many redundant grain tables differed from the first ones. */
  mended: 1,
} as const
export const DISK_WORDS = 2

export const createVmdkMemory = ({ extents }: VmdkSpec): VmdkMemory => ({
  words: new SharedArrayBuffer(4 * (DISK_WORDS + extents.length)),
})
