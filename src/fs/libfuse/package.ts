/** The npm package fuse-native: loads it, declares the part that is used, and reports if it is missing. */
import { createRequire } from 'node:module'
import path from 'node:path'
import { MountError } from '../../errors.js'
import { FOLDER } from '../../packages.js'

/** The version. The optional dependency in package.json names the same. */
export const FUSE_NATIVE = 'fuse-native@2.2.6'

/** Ends an operation with 0, a count, or a negative errno. */
export type Done = (result: number) => void

/** Attributes; times in whole milliseconds since 1970. */
export interface FuseStat {
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly size: number
  readonly nlink: number
  readonly ino: number
  readonly blksize: number
  /** In units of 512 bytes. */
  readonly blocks: number
  readonly atime: number
  readonly mtime: number
  readonly ctime: number
}

/** Each field has 32 bits. */
export interface FuseStatfs {
  readonly bsize: number
  readonly frsize: number
  readonly blocks: number
  readonly bfree: number
  readonly bavail: number
  readonly files: number
  readonly namemax: number
}

/**
 * The operations, by path. libfuse waits for each one. If an operation never calls `done`, or throws, the program that asked
 * hangs; if it calls `done` twice, it answers another request. Operations that are missing here fail with ENOSYS, which the
 * kernel turns into EOPNOTSUPP.
 */
export interface FuseOperations {
  getattr(path: string, done: (result: number, stat?: FuseStat) => void): void
  fgetattr(path: string, fh: number, done: (result: number, stat?: FuseStat) => void): void
  readdir(
    path: string,
    done: (result: number, names?: string[], stats?: Partial<FuseStat>[]) => void,
  ): void
  statfs(path: string, done: (result: number, stat?: FuseStatfs) => void): void
  access(path: string, mask: number, done: Done): void
  open(path: string, flags: number, done: (result: number, fh: number) => void): void
  read(path: string, fh: number, target: Buffer, length: number, offset: number, done: Done): void
  write(path: string, fh: number, source: Buffer, length: number, offset: number, done: Done): void
  flush(path: string, fh: number, done: Done): void
  release(path: string, fh: number, done: Done): void
  fsync(path: string, dataOnly: number, fh: number, done: Done): void
  truncate(path: string, bytes: number, done: Done): void
  ftruncate(path: string, fh: number, bytes: number, done: Done): void
  utimens(path: string, atime: number, mtime: number, done: Done): void
  chmod(path: string, mode: number, done: Done): void
  chown(path: string, uid: number, gid: number, done: Done): void
  create(path: string, mode: number, done: (result: number, fh: number) => void): void
  mknod(path: string, mode: number, device: number, done: Done): void
  mkdir(path: string, mode: number, done: Done): void
  unlink(path: string, done: Done): void
  rmdir(path: string, done: Done): void
  rename(from: string, to: string, done: Done): void
  link(from: string, to: string, done: Done): void
  symlink(target: string, path: string, done: Done): void
}

/** The package's class, with the inner methods that are replaced. */
export interface FuseNative {
  new (
    mountpoint: string,
    operations: FuseOperations,
    options: { timeout: false },
  ): {
    mount(done: (error?: Error | null) => void): void
    /** libfuse's command line, `-oNAME,NAME=VALUE…`. */
    _fuseOptions(): string
    /** Answers a request for attributes by handle; calls `getattr`, which gets no handle. */
    _op_fgetattr(signal: unknown, path: string, fh: number): void
  }
}

/** Throws MountError if the package is missing, or has no binary for this machine. */
export function loadFuseNative(): FuseNative {
  try {
    return createRequire(import.meta.url)('fuse-native')
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException
    throw new MountError(
      code === 'MODULE_NOT_FOUND' && message.includes("'fuse-native'")
        ? `the package fuse-native, which --transport libfuse needs, is not installed; install it with ${installCommand(FOLDER)}`
        : `the package fuse-native cannot be loaded on this machine (${message.split('\n')[0]}); mount without --transport libfuse`,
    )
  }
}

export function hasFuseNative(): boolean {
  try {
    createRequire(import.meta.url).resolve('fuse-native')
    return true
  } catch {
    return false
  }
}

/** @param folder the folder of this package: a clone, or in a node_modules */
export function installCommand(folder: string): string {
  const parent = path.dirname(path.resolve(folder))
  if (path.basename(parent) !== 'node_modules') {
    return `npm install --no-save --prefix ${path.resolve(folder)} ${FUSE_NATIVE}`
  }
  const project = path.dirname(parent)
  return path.basename(project) === 'lib'
    ? `npm install --global ${FUSE_NATIVE}`
    : `npm install --prefix ${project} ${FUSE_NATIVE}`
}
