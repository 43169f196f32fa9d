/** The flags of a file that chattr(1) shows (ioctl_iflags(2)). */
import { loadLibc } from './native.js'

const ioctl = loadLibc().func('int ioctl(int fd, unsigned long request, void *argument)')

const FS_IOC_GETFLAGS = 0x80086601
const FS_IOC_SETFLAGS = 0x40086602

/** Returns the flags of the file at `fd`; undefined if its file system has none. */
export function fileFlags(fd: number): number | undefined {
  const flags = Buffer.alloc(8)
  return ioctl(fd, FS_IOC_GETFLAGS, flags) === 0 ? flags.readUInt32LE(0) : undefined
}

/** Sets the flags of the file at `fd`, where its file system and the user's rights allow it. */
export function setFileFlags(fd: number, flags: number): void {
  const argument = Buffer.alloc(8)
  argument.writeUInt32LE(flags >>> 0, 0)
  ioctl(fd, FS_IOC_SETFLAGS, argument)
}
