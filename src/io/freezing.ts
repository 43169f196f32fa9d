/** Freezing a file system: it writes out what it holds, and takes no changes until it is thawed (ioctl_fs; fs/super.c). */
import { constants } from 'node:os'
import { SystemError } from '../errors.js'
import { errno } from './libc.js'
import { loadLibc } from './native.js'

const ioctl = loadLibc().func('int ioctl(int fd, unsigned long request, void *argument)')

const FIFREEZE = 0xc0045877
const FITHAW = 0xc0045878
const NO_ARGUMENT = Buffer.alloc(4)

/**
 * Freezes the file system of the folder that is open at `fd`. Waits until it has written out what it holds. Returns false if it
 * is frozen already. Throws SystemError.
 */
export function freeze(fd: number): boolean {
  if (ioctl(fd, FIFREEZE, NO_ARGUMENT) >= 0) return true
  const reason = errno()
  if (reason === constants.errno.EBUSY) return false
  throw new SystemError('FIFREEZE', reason)
}

/** Thaws the file system of the folder that is open at `fd`. Returns whether it was frozen. */
export const thaw = (fd: number): boolean => ioctl(fd, FITHAW, NO_ARGUMENT) >= 0
