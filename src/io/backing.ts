/** System calls for FUSE passthrough (linux/fuse.h, FUSE_DEV_IOC_BACKING_OPEN), and what decides whether a file can have it. */
import fs from 'node:fs'
import { fileFlags } from './file-flags.js'
import { errno } from './libc.js'
import { loadLibc } from './native.js'
import { SECTOR_BYTES } from '../sector.js'

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

const FS_IMMUTABLE_FL = 0x10
const FS_VERITY_FL = 0x100000

/** Reports whether the file system refuses every change of the file at `fd`: it is immutable (chattr +i), or has fs-verity. */
export const isUnchangeable = (fd: number): boolean =>
  ((fileFlags(fd) ?? 0) & (FS_IMMUTABLE_FL | FS_VERITY_FL)) !== 0

const AT_EMPTY_PATH = 0x1000
const STATX_DIOALIGN = 0x2000
/** Linux 6.15. */
const STATX_DIO_READ_ALIGN = 0x20000
const NO_PATH = Buffer.alloc(1)
/** struct statx: its size, and the offsets of its fields. */
const STATX = { bytes: 256, mask: 0, offsetAlign: 156, readOffsetAlign: 180 } as const

const BTRFS = 0x9123683e
const TMPFS = 0x01021994
/** statfs(2): those that read at any place with O_DIRECT. */
const UNALIGNED: readonly number[] = [BTRFS, TMPFS]
/** statfs(2): ext, xfs, btrfs, tmpfs. To open a file of theirs anew has no effect on it, whatever the flags. */
const FILE_SYSTEMS: readonly number[] = [0xef53, 0x58465342, BTRFS, TMPFS]

const typeOf = (fd: number): number => fs.statfsSync(`/proc/self/fd/${fd}`).type

/** Reports whether opening the file at `fd` anew has no effect on it. Throws Node's error. */
export const hasHarmlessOpenings = (fd: number): boolean => FILE_SYSTEMS.includes(typeOf(fd))

/**
 * Reports whether the file at `fd` can be read with O_DIRECT at each sector (statx(2)). Writes may need more, such as those of
 * xfs to shared blocks. Throws Node's error.
 */
export function readsSectorsDirectly(fd: number): boolean {
  if (UNALIGNED.includes(typeOf(fd))) return true
  const found = Buffer.alloc(STATX.bytes)
  const asked = STATX_DIOALIGN | STATX_DIO_READ_ALIGN
  if (statx(fd, NO_PATH, AT_EMPTY_PATH, asked, found) !== 0) return false
  const mask = found.readUInt32LE(STATX.mask)
  if ((mask & (STATX_DIOALIGN | STATX_DIO_READ_ALIGN)) === 0) return false
  const isOfReads = (mask & STATX_DIO_READ_ALIGN) !== 0
  const alignment = found.readUInt32LE(isOfReads ? STATX.readOffsetAlign : STATX.offsetAlign)
  return alignment > 0 && alignment <= SECTOR_BYTES
}
