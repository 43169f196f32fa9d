/** System calls for FUSE passthrough (linux/fuse.h, FUSE_DEV_IOC_BACKING_OPEN), and what decides whether a file can have it. */
import { loadLibc } from './native.js'
import { errno } from './libc.js'

const libc = loadLibc()
const ioctl = libc.func('int ioctl(int fd, unsigned long request, void *argument)')
const statx = libc.func(
  'int statx(int fd, const void *path, int flags, unsigned int mask, void *target)',
)

const FUSE_DEV_IOC_BACKING_OPEN = 0x4010e501
const FUSE_DEV_IOC_BACKING_CLOSE = 0x4004e502

/**
 * Registers the file that is open at `fd` as one that the kernel reads and writes itself. `device` is a /dev/fuse of the mount.
 * Returns its number, which is above 0, or a negative errno: EPERM outside the first user namespace.
 */
export function openBacking(device: number, fd: number): number {
  const map = Buffer.alloc(16)
  map.writeInt32LE(fd, 0)
  const number = ioctl(device, FUSE_DEV_IOC_BACKING_OPEN, map)
  return number < 0 ? -errno() : number
}

/** Takes the number back. Open files keep what they have. */
export function closeBacking(device: number, number: number): void {
  const argument = Buffer.alloc(4)
  argument.writeUInt32LE(number)
  ioctl(device, FUSE_DEV_IOC_BACKING_CLOSE, argument)
}

const FS_IOC_GETFLAGS = 0x80086601
const FS_IMMUTABLE_FL = 0x10
const FS_VERITY_FL = 0x100000

/** Reports whether the file system refuses every change of the file at `fd`: it is immutable (chattr +i), or has fs-verity. */
export function isUnchangeable(fd: number): boolean {
  const flags = Buffer.alloc(8)
  return (
    ioctl(fd, FS_IOC_GETFLAGS, flags) === 0 &&
    (flags.readUInt32LE(0) & (FS_IMMUTABLE_FL | FS_VERITY_FL)) !== 0
  )
}

const AT_EMPTY_PATH = 0x1000
const STATX_DIOALIGN = 0x2000
const NO_PATH = Buffer.alloc(1)
/** struct statx: its size, and the offsets of its fields. */
const STATX = { bytes: 256, mask: 0, offsetAlign: 156 } as const

/**
 * Returns the multiple of bytes at which the file at `fd` can be read with O_DIRECT: 0 if it cannot, undefined if the file system
 * does not say (statx(2), STATX_DIOALIGN).
 */
export function directAlignment(fd: number): number | undefined {
  const found = Buffer.alloc(STATX.bytes)
  if (statx(fd, NO_PATH, AT_EMPTY_PATH, STATX_DIOALIGN, found) !== 0) return undefined
  if ((found.readUInt32LE(STATX.mask) & STATX_DIOALIGN) === 0) return undefined
  return found.readUInt32LE(STATX.offsetAlign)
}
