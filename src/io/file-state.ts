/** The marks by which a change of a file is noticed: its identity, its size and its times (statx(2)). */
import { AT_FDCWD } from './libc.js'
import { loadLibc } from './native.js'

export interface FileState {
  /** The device and the number of the file; of a device node, the device that it stands for. */
  readonly identity: string
  readonly isDevice: boolean
  /** In bytes; 0 for a device. */
  readonly sizeBytes: number
  /** The time of the last write, as text: only for being compared. */
  readonly modified: string
  /** The same of the last change of any kind, such as another mode. */
  readonly changed: string
}

const statx = loadLibc().func(
  'int statx(int fd, const void *path, int flags, unsigned int mask, void *target)',
)
const AT_EMPTY_PATH = 0x1000
/** Asks the server of a network file system, which otherwise is asked every few seconds only. */
const AT_STATX_FORCE_SYNC = 0x2000
/** Type, modification time, change time, number and size. */
const MASK = 0x1 | 0x40 | 0x80 | 0x100 | 0x200
/** struct statx: its size, and the offsets of its fields. */
const BYTES = 256
const AT = { mode: 28, ino: 32, size: 40, ctime: 96, mtime: 112, rdev: 128, dev: 136 } as const
const { S_IFMT, S_IFBLK } = { S_IFMT: 0o170000, S_IFBLK: 0o060000 }
const NO_PATH = Buffer.alloc(1)

/** Returns the state of the file that is open at `fd`; undefined if its file system does not tell. */
export function stateOfDescriptor(fd: number): FileState | undefined {
  const target = Buffer.alloc(BYTES)
  const flags = AT_EMPTY_PATH | AT_STATX_FORCE_SYNC
  return statx(fd, NO_PATH, flags, MASK, target) === 0 ? decode(target) : undefined
}

/** Returns the state of the file at `path`; undefined if there is none, or none that can be reached. */
export function stateOfPath(path: string): FileState | undefined {
  const target = Buffer.alloc(BYTES)
  const name = Buffer.from(`${path}\0`)
  const result = statx(AT_FDCWD, name, AT_STATX_FORCE_SYNC, MASK, target)
  return result === 0 ? decode(target) : undefined
}

/** Returns the same as `stateOfPath` without blocking this thread: the file system's server may be dead. */
export function stateOfPathApart(path: string): Promise<FileState | undefined> {
  return statxApart(AT_FDCWD, Buffer.from(`${path}\0`), AT_STATX_FORCE_SYNC)
}

/** Returns the same as `stateOfDescriptor` without blocking this thread. */
export function stateOfDescriptorApart(fd: number): Promise<FileState | undefined> {
  return statxApart(fd, NO_PATH, AT_EMPTY_PATH | AT_STATX_FORCE_SYNC)
}

function statxApart(fd: number, name: Buffer, flags: number): Promise<FileState | undefined> {
  const target = Buffer.alloc(BYTES)
  return new Promise(resolve => {
    // The closure keeps both buffers alive until the call has returned.
    statx.async(fd, name, flags, MASK, target, (error: unknown, result: number) =>
      resolve(name.length > 0 && !error && result === 0 ? decode(target) : undefined),
    )
  })
}

function decode(statx: Buffer): FileState {
  const isDevice = (statx.readUInt16LE(AT.mode) & S_IFMT) === S_IFBLK
  const device = (at: number) => `${statx.readUInt32LE(at)}:${statx.readUInt32LE(at + 4)}`
  const time = (at: number) => `${statx.readBigInt64LE(at)}.${statx.readUInt32LE(at + 8)}`
  return {
    identity: isDevice
      ? `device ${device(AT.rdev)}`
      : `${device(AT.dev)} ${statx.readBigUInt64LE(AT.ino)}`,
    isDevice,
    sizeBytes: isDevice ? 0 : Number(statx.readBigUInt64LE(AT.size)),
    modified: time(AT.mtime),
    changed: time(AT.ctime),
  }
}
