/**
 * Descriptors that stand for files that are not on this machine. They tell files apart by device and inode and have the
 * file's size, as others do, but no byte can be read by them: code that knows nothing of sources fails, and never reads zeros.
 */
import fs from 'node:fs'
import { closeFile, ftruncate, memoryFile, O_PATH } from './libc.js'

/** Where a mount lets others in, they may read what its user can reach, and not write it. */
const MODE = 0o644

export interface Placeholder {
  readonly fd: number
  readonly stat: fs.BigIntStats
}

/** Makes one for a file of `sizeBytes`, for `fs.closeSync`. Throws SystemError. */
export function placeholder(sizeBytes: number): Placeholder {
  const memory = memoryFile('vimgfs-remote')
  try {
    ftruncate(memory, sizeBytes)
    fs.fchmodSync(memory, MODE)
    return reopened(memory)
  } finally {
    closeFile(memory)
  }
}

/** Makes another descriptor for the same file. */
export function reopened(fd: number): Placeholder {
  const again = fs.openSync(`/proc/self/fd/${fd}`, O_PATH)
  return { fd: again, stat: fs.fstatSync(again, { bigint: true }) }
}
