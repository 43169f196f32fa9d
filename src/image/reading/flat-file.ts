/** Finds disks whose bytes are, range for range, those of one file. */
import type { View } from '../../formats/driver.js'
import { FileStore } from '../../io/store.js'
import { walkView } from './engine.js'

/** The most pieces that are looked at: tables of 64 GiB with clusters of 64 KiB. */
const MOST_PIECES = 2048

/**
 * Returns the file of which each byte is the byte of the disk at the same place, for `sizeBytes` bytes; undefined if there is none,
 * or too many tables would have to be read to know. The caller compares the sizes. Throws ImageError, SystemError.
 */
export function flatFileOf(view: View, sizeBytes: number): FileStore | undefined {
  let file: FileStore | undefined
  let pieces = 0
  const isFlat = walkView(view, 0, sizeBytes, (extent, offset) => {
    // A store that is no file decrypts.
    if (extent.kind !== 'data' || !(extent.store instanceof FileStore)) return false
    if (extent.at !== offset || (file !== undefined && file.fd !== extent.store.fd)) return false
    file = extent.store
    return ++pieces <= MOST_PIECES
  })
  return isFlat ? file : undefined
}
