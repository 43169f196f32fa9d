/** What the threads that write a VMDK image share; see disk-memory.ts. */
import type { VmdkSpec } from './image.js'

export interface VmdkMemory {
  /** DISK_WORDS, and one of each extent: whether something was written to it since it was last synced. */
  readonly words: SharedArrayBuffer
}

/** Words of the disk; those of its extents follow. */
export const DISK = {
  /** Whether the descriptor has this mount's CID. */
  hasCid: 0,
  /** Redundant grain tables that said something else than the first ones. */
  mended: 1,
} as const
export const DISK_WORDS = 2

export const createVmdkMemory = ({ extents }: VmdkSpec): VmdkMemory => ({
  words: new SharedArrayBuffer(4 * (DISK_WORDS + extents.length)),
})
