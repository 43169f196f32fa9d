/** The answer's flags to an OPEN: how the kernel reads and writes an open file. */
import fs from 'node:fs'
import { FOPEN } from './protocol.js'

const { O_DIRECT, O_TRUNC } = fs.constants

export interface OpenedFile {
  /** Whether programs may write it. */
  readonly isWritable: boolean
  /** Whether other files show the same bytes, and can be written, too. */
  readonly isShared: boolean
  /** Whether the kernel may have old pages of it. */
  readonly isStale: boolean
  /** Whether handles that bypass the page cache and others see the same bytes on this kernel. */
  readonly isDirectCoherent: boolean
}

/** @param flags those of open(2) */
export function openFlagsOf(flags: number, file: OpenedFile): number {
  const parallel = flags & O_DIRECT ? FOPEN.PARALLEL_DIRECT_WRITES : 0
  // The kernel knows nothing of the other files. So it keeps pages only of maps.
  if (file.isShared) return FOPEN.DIRECT_IO | parallel
  // Only writes through this kernel change the files, so cached pages stay valid for every opening, but not after a revert.
  let openFlags = file.isStale ? 0 : FOPEN.KEEP_CACHE
  if (!file.isDirectCoherent || !file.isWritable) return openFlags
  // Writes past the page cache may run in parallel.
  if (flags & O_DIRECT) openFlags |= FOPEN.DIRECT_IO | parallel
  // A write that skips bytes zeroes them. Past the page cache the kernel drops the page in which such a write begins.
  if (flags & O_TRUNC) openFlags |= FOPEN.DIRECT_IO
  return openFlags
}
