/**
 * The system calls that Node lacks, and the three that every request needs.
 *
 * koffi calls libc directly. `read`, `pread` and `write` cost about 40 ns more than in C, a third of what `fs.readSync`
 * adds, and report EAGAIN without building an exception. Buffers are passed as `void *`: koffi would copy a typed pointer
 * element by element.
 */
import { constants } from 'node:os'
import { SystemError } from '../errors.js'
import { koffi, loadLibc } from './native.js'

const libc = loadLibc()

/** read(2). Returns the bytes read, or -1 with {@link errno} set. */
export const read: (fd: number, target: Buffer, bytes: number) => number = libc.func(
  'int64_t read(int fd, void *target, size_t bytes)',
)
/** pread(2). Returns the bytes read, 0 at the end of the file, or -1 with {@link errno} set. */
export const pread: (fd: number, target: Buffer, bytes: number, at: number) => number = libc.func(
  'int64_t pread64(int fd, void *target, size_t bytes, int64_t at)',
)
/** pwrite(2). Returns the bytes written, or -1 with {@link errno} set. */
export const pwrite: (fd: number, source: Buffer, bytes: number, at: number) => number = libc.func(
  'int64_t pwrite64(int fd, const void *source, size_t bytes, int64_t at)',
)
/** write(2). Returns the bytes written, or -1 with {@link errno} set. */
export const write: (fd: number, source: Buffer, bytes: number) => number = libc.func(
  'int64_t write(int fd, const void *source, size_t bytes)',
)

const memset: (target: Buffer, byte: number, bytes: number) => void = libc.func(
  'void memset(void *target, int byte, size_t bytes)',
)

/** Zeroes `target` from `start` to `end`. `Buffer.fill` takes 40 times as long on shared memory. */
export function clear(target: Buffer, start: number, end: number): void {
  if (end > start) memset(target.subarray(start, end), 0, end - start)
}

/** Returns the calling thread's errno, as the last call of this module left it. */
export const errno = (): number => koffi.errno()

/** fdatasync(2). Returns 0, or -1 with {@link errno} set. */
export const fdatasync: (fd: number) => number = libc.func('int fdatasync(int fd)')
/** ftruncate(2). Returns 0, or -1 with {@link errno} set. */
export const ftruncate: (fd: number, bytes: number) => number = libc.func(
  'int ftruncate64(int fd, int64_t bytes)',
)
/** fallocate(2). Returns 0, or -1 with {@link errno} set. */
export const fallocate: (fd: number, mode: number, at: number, bytes: number) => number = libc.func(
  'int fallocate64(int fd, int mode, int64_t at, int64_t bytes)',
)
export const FALLOC_FL_KEEP_SIZE = 1
export const FALLOC_FL_PUNCH_HOLE = 2
export const FALLOC_FL_ZERO_RANGE = 16

const openat = libc.func('int openat(int folder, const void *path, int flags)')
const readlinkat = libc.func(
  'int64_t readlinkat(int folder, const char *path, void *target, size_t bytes)',
)
const syscall = libc.func('long syscall(long number, ...)')

/** Opens a descriptor that only refers to a file: it has no effect on a FIFO or a device. */
export const O_PATH = 0o10000000
export const O_CLOEXEC = 0o2000000
/** For {@link openAt}: names are relative to the current folder. */
export const AT_FDCWD = -100

/** openat(2) of an existing file. Returns a descriptor for `closeFile`, or -1 with {@link errno} set. */
export function openAt(folder: number, name: Buffer, flags: number): number {
  return openat(folder, terminated(name), flags | O_CLOEXEC)
}

/** The same number on all architectures. */
const OPENAT2 = 437
const OPEN_HOW_BYTES = 24

/** openat2(2) of an existing file. Returns a descriptor for `closeFile`, or -1 with {@link errno} set. */
export function openAt2(folder: number, name: Buffer, flags: number, resolve: number): number {
  const how = Buffer.alloc(OPEN_HOW_BYTES)
  how.writeBigUInt64LE(BigInt(flags | O_CLOEXEC), 0)
  how.writeBigUInt64LE(BigInt(resolve), 16)
  const path = terminated(name)
  return syscall(OPENAT2, 'int', folder, 'void *', path, 'void *', how, 'size_t', OPEN_HOW_BYTES)
}

const PATH_MAX = 4096

/** Returns where the symbolic link points that was opened with O_PATH as `fd`. Throws SystemError. */
export function readLink(fd: number): Buffer {
  const target = Buffer.alloc(PATH_MAX)
  return target.subarray(0, check(readlinkat(fd, '', target, target.length), 'readlinkat'))
}

const terminated = (name: Buffer): Buffer => Buffer.concat([name, Buffer.alloc(1)])

const memfd_create = libc.func('int memfd_create(const char *name, unsigned int flags)')
const MFD_CLOEXEC = 1

/** Makes an empty file in memory (memfd_create(2)). Returns its descriptor, for `closeFile`. */
export function memoryFile(name: string): number {
  return check(memfd_create(name, MFD_CLOEXEC), 'memfd_create')
}

const linkat = libc.func(
  'int linkat(int fromFolder, const char *from, int toFolder, const char *to, int flags)',
)
const AT_SYMLINK_FOLLOW = 0x400

/**
 * Gives the file without a name that is open at `fd` (open(2), O_TMPFILE) the name `path`. Throws SystemError; EEXIST if there
 * is such a name already.
 */
export function nameFile(fd: number, path: string): void {
  const source = `/proc/self/fd/${fd}`
  check(linkat(AT_FDCWD, source, AT_FDCWD, path, AT_SYMLINK_FOLLOW), 'linkat', path)
}

/** close(2), for descriptors that Node has not opened: `fs.closeSync` would warn about those. */
export const closeFile: (fd: number) => number = libc.func('int close(int fd)')

const F_DUPFD_CLOEXEC = 1030

/** Duplicates `fd` (fcntl(2)); children do not inherit the new descriptor. For `closeFile`. */
export function duplicate(fd: number): number {
  return check(fcntl(fd, F_DUPFD_CLOEXEC, 'int', 0), 'fcntl')
}

const dup2 = libc.func('int dup2(int from, int to)')

/** Makes `fd` a duplicate of `by` (dup2(2)). */
export function redirect(fd: number, by: number): void {
  check(dup2(by, fd), 'dup2')
}

const poll = libc.func('int poll(void *descriptors, unsigned long count, int milliseconds)')
const POLLERR = 8

/** Reports whether the connection of `fd`, a /dev/fuse, is over: unmounted and no longer used, or aborted. */
export function hasHungUp(fd: number): boolean {
  // struct pollfd that asks for no events: errors and hang-ups are reported anyway.
  const descriptor = Buffer.alloc(8)
  descriptor.writeInt32LE(fd, 0)
  return poll(descriptor, 1, 0) > 0 && (descriptor.readInt16LE(6) & POLLERR) !== 0
}

const POLLIN = 1

/** Reports whether `fd` can be read without waiting, or has an error, within `milliseconds` (poll(2)). */
export function isReadyToRead(fd: number, milliseconds: number): boolean {
  const descriptor = Buffer.alloc(8)
  descriptor.writeInt32LE(fd, 0)
  descriptor.writeInt16LE(POLLIN, 4)
  return poll(descriptor, 1, milliseconds) > 0
}

const POLLOUT = 4

/** Reports whether `fd` can be written without waiting, or has an error, within `milliseconds` (poll(2)). */
export function isReadyToWrite(fd: number, milliseconds: number): boolean {
  const descriptor = Buffer.alloc(8)
  descriptor.writeInt32LE(fd, 0)
  descriptor.writeInt16LE(POLLOUT, 4)
  return poll(descriptor, 1, milliseconds) > 0
}

const lseek64 = libc.func('int64_t lseek64(int fd, int64_t offset, int whence)')
const fcntl = libc.func('int fcntl(int fd, int command, ...)')
const ioctl32 = libc.func('int ioctl(int fd, unsigned long request, void *argument)')
const mount2 = libc.func(
  'int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)',
)
const umount2 = libc.func('int umount2(const char *target, int flags)')
const socketpair = libc.func('int socketpair(int domain, int type, int protocol, void *pair)')
const recvmsg = libc.func('int64_t recvmsg(int fd, void *message, int flags)')
const socket = libc.func('int socket(int domain, int type, int protocol)')
const connect = libc.func('int connect(int fd, const void *address, uint32_t bytes)')
const send = libc.func('int64_t send(int fd, const void *bytes, size_t length, int flags)')

/** Returns `result`. Throws the calling thread's errno as a SystemError if it is negative. */
function check(result: number, syscall: string, path?: string): number {
  if (result < 0) throw new SystemError(syscall, koffi.errno(), path)
  return result
}

const SEEK_END = 2
export const SEEK_DATA = 3
export const SEEK_HOLE = 4

/** lseek(2) with SEEK_DATA or SEEK_HOLE. Returns -1 with {@link errno} set (ENXIO: no data from `at` on). */
export function seekExtent(fd: number, at: number, whence: number): number {
  return lseek64(fd, at, whence)
}

/** Returns the size of a regular file or block device, in bytes. */
export function sizeOf(fd: number): number {
  return check(lseek64(fd, 0, SEEK_END), 'lseek')
}

const statx: (fd: number, path: Buffer, flags: number, mask: number, target: Buffer) => number =
  libc.func('int statx(int fd, const void *path, int flags, unsigned int mask, void *target)')
const NO_PATH = Buffer.alloc(1)
const AT_EMPTY_PATH = 0x1000
const AT_STATX_DONT_SYNC = 0x4000
const STATX_TYPE = 1
const STATX_SIZE = 0x200
/** struct statx: its size, and the offsets of its fields. */
const STATX = { bytes: 256, mode: 28, size: 40 } as const
const S_IFMT = 0o170000
const S_IFREG = 0o100000
const statxBuffer = Buffer.alloc(STATX.bytes)

/**
 * Returns the size of the regular file that is open at `fd`, in bytes; -1 for anything else, and on errors. It asks for
 * the size alone, because NFS flushes its cached writes when it is asked for times.
 * @param isAsked false returns what this kernel knows; true asks the server of a network file system
 */
export function regularFileSize(fd: number, isAsked: boolean): number {
  const flags = isAsked ? AT_EMPTY_PATH : AT_EMPTY_PATH | AT_STATX_DONT_SYNC
  if (statx(fd, NO_PATH, flags, STATX_TYPE | STATX_SIZE, statxBuffer) !== 0) return -1
  if ((statxBuffer.readUInt16LE(STATX.mode) & S_IFMT) !== S_IFREG) return -1
  const high = statxBuffer.readUInt32LE(STATX.size + 4)
  return high * 2 ** 32 + statxBuffer.readUInt32LE(STATX.size)
}

const F_OFD_GETLK = 36
const F_OFD_SETLK = 37
const F_RDLCK = 0
const F_WRLCK = 1
const F_UNLCK = 2
const FLOCK_BYTES = 32

/** Reports whether another open file description holds a lock of any kind on the byte at `at` (fcntl(2)). */
export function isLockedByOthers(fd: number, at: number): boolean {
  const flock = flockOf(F_WRLCK, at)
  return fcntl(fd, F_OFD_GETLK, 'void *', flock) === 0 && flock.readInt16LE(0) !== F_UNLCK
}

/**
 * Takes a shared lock on the byte at `at`, for as long as the open file description of `fd` lives (fcntl(2),
 * F_OFD_SETLK). Returns 0, or -1 with {@link errno} set.
 */
export function lockShared(fd: number, at: number): number {
  return fcntl(fd, F_OFD_SETLK, 'void *', flockOf(F_RDLCK, at))
}

/** Returns a struct flock of 64-bit Linux, for one byte. */
function flockOf(type: number, at: number): Buffer {
  const flock = Buffer.alloc(FLOCK_BYTES)
  flock.writeInt16LE(type, 0)
  flock.writeBigInt64LE(BigInt(at), 8)
  flock.writeBigInt64LE(1n, 16)
  return flock
}

/** Starts a session of this process alone, without a terminal (setsid(2)). Returns -1 on errors. */
export const startSession: () => number = libc.func('int setsid()')

/** Ends the process at once (_exit(2)): no other thread and no exit handler runs, and no buffer is flushed. */
export const exitNow: (code: number) => void = libc.func('void _exit(int code)')

const name_to_handle_at = libc.func(
  'int name_to_handle_at(int dir, const char *path, void *handle, void *mountId, int flags)',
)
const MAX_HANDLE_BYTES = 128

/**
 * Returns the number by which the kernel and the server of a FUSE file system know the file at `path`
 * (name_to_handle_at(2); fs/fuse/inode.c, fuse_encode_fh). Throws SystemError.
 */
export function nodeOf(path: string): number {
  const handle = Buffer.alloc(8 + MAX_HANDLE_BYTES)
  handle.writeUInt32LE(MAX_HANDLE_BYTES, 0)
  check(name_to_handle_at(AT_FDCWD, path, handle, Buffer.alloc(4), 0), 'name_to_handle_at', path)
  return handle.readUInt32LE(8) * 2 ** 32 + handle.readUInt32LE(12)
}

const FUSE_DEV_IOC_CLONE = 0x8004e500

/** Joins `fd`, a newly opened /dev/fuse, to the connection of `session`. Returns false if the kernel refuses. */
export function cloneDevice(fd: number, session: number): boolean {
  const argument = Buffer.alloc(4)
  argument.writeUInt32LE(session)
  return ioctl32(fd, FUSE_DEV_IOC_CLONE, argument) === 0
}

const FICLONERANGE = 0x4020940d

/** ioctl_ficlonerange(2). Returns 0, or -1 with {@link errno} set. */
export function cloneRange(
  target: number,
  source: number,
  at: number,
  bytes: number,
  to: number,
): number {
  const range = Buffer.alloc(32)
  for (const [i, value] of [source, at, bytes, to].entries()) {
    range.writeBigInt64LE(BigInt(value), 8 * i)
  }
  return ioctl32(target, FICLONERANGE, range)
}

export const MS_RDONLY = 1
export const MS_REMOUNT = 32
export const MNT_DETACH = 2
const UMOUNT_NOFOLLOW = 8

export function mount(
  source: string,
  target: string,
  type: string,
  flags: number,
  data: string,
): void {
  check(mount2(source, target, type, flags, data), 'mount', target)
}

export function unmount(target: string, flags: number): void {
  check(umount2(target, flags | UMOUNT_NOFOLLOW), 'umount', target)
}

const AF_UNIX = 1
const SOCK_STREAM = 1
const SOCK_DGRAM = 2
const SOCK_CLOEXEC = 0o2000000

/** Returns a connected pair of stream sockets. Children inherit neither end unless it is passed to them. */
export function unixSocketPair(): [number, number] {
  const pair = Buffer.alloc(8)
  check(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 'socketpair')
  return [pair.readInt32LE(0), pair.readInt32LE(4)]
}

const MSGHDR_BYTES = 56
const CMSGHDR_BYTES = 16
const SOL_SOCKET = 1
const SCM_RIGHTS = 1
const MSG_CMSG_CLOEXEC = 0x40000000
const { EINTR } = constants.errno

/**
 * Returns the descriptor that the other end of `socket` sends with its next byte (unix(7), SCM_RIGHTS), or -1 if that end
 * is closed without sending one. Blocks. The structures are those of 64-bit Linux.
 */
export function receiveDescriptor(socketFd: number): number {
  const byte = Buffer.alloc(1)
  const vector = Buffer.alloc(16)
  const control = Buffer.alloc(CMSGHDR_BYTES + 8)
  const header = Buffer.alloc(MSGHDR_BYTES)
  vector.writeBigUInt64LE(koffi.address(byte), 0)
  vector.writeBigUInt64LE(1n, 8)
  header.writeBigUInt64LE(koffi.address(vector), 16)
  header.writeBigUInt64LE(1n, 24)
  header.writeBigUInt64LE(koffi.address(control), 32)
  header.writeBigUInt64LE(BigInt(control.length), 40)
  let got: number
  do got = recvmsg(socketFd, header, MSG_CMSG_CLOEXEC)
  while (got < 0 && koffi.errno() === EINTR)
  check(got, 'recvmsg')
  const found =
    Number(header.readBigUInt64LE(40)) >= CMSGHDR_BYTES + 4 &&
    control.readInt32LE(8) === SOL_SOCKET &&
    control.readInt32LE(12) === SCM_RIGHTS
  return found ? control.readInt32LE(CMSGHDR_BYTES) : -1
}

/** Returns a datagram socket that is connected to the Unix address `path`. Throws SystemError. */
export function connectDatagram(path: string): number {
  const fd = check(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0), 'socket')
  const address = Buffer.alloc(110)
  address.writeUInt16LE(AF_UNIX, 0)
  address.write(path, 2, 107, 'utf8')
  check(connect(fd, address, address.length), 'connect', path)
  return fd
}

const MSG_DONTWAIT = 0x40
const MSG_NOSIGNAL = 0x4000

/** Sends one datagram. Returns false if the receiver is gone or its queue is full. */
export function sendDatagram(fd: number, datagram: Buffer): boolean {
  return send(fd, datagram, datagram.length, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0
}
