/** The answer's flags to an OPEN: how the kernel reads and writes an open file. */
import fs from 'node:fs'
import { FOPEN } from './protocol.js'

const { O_DIRECT, O_RDONLY, O_TRUNC } = fs.constants
const ACCESS_MODE = 3

export interface OpenedFile {
  /** Whether programs may write it. */
  readonly isWritable: boolean
  /** Whether other files show the same bytes, and can be written, too. */
  readonly isShared: boolean
  /** Whether the kernel may have old pages of it. */
  readonly isStale: boolean
  /** Whether somebody has it open who writes past the page cache. */
  readonly hasWriterPastCache: boolean
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
  // Writes past the page cache may run in parallel, but not while a handle may fill that cache, as a reader's with O_DIRECT may, too.
  // For him alone that is not worth it: without the flag, the kernel asks for the pieces of a large read at once. In both ways his
  // reads come from here, and writes past the cache drop what is cached, so the order of openings does not matter.
  const isReading = (flags & ACCESS_MODE) === O_RDONLY
  if (flags & O_DIRECT && (!isReading || file.hasWriterPastCache)) {
    openFlags |= FOPEN.DIRECT_IO | parallel
  }
  // A write that skips bytes zeroes them. Past the page cache the kernel drops the page in which such a write begins.
  if (flags & O_TRUNC) openFlags |= FOPEN.DIRECT_IO
  return openFlags
}
