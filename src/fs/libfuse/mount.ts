/** Mounts through fuse-native, with the options that libfuse 2 needs. */
import fs from 'node:fs'
import path from 'node:path'
import { MountError, printable } from '../../errors.js'
import { closeFile, duplicate, memoryFile, redirect } from '../../io/libc.js'
import { flagNames } from '../mounting/mount-flags.js'
import {
  DEVICE,
  explain,
  flagsOf,
  MISSING_HELPER,
  type MountRequest,
  noDevice,
} from '../mounting/mount.js'
import { VALID_SECONDS } from '../nodes/node-operations.js'
import { type FuseOperations, loadFuseNative } from './package.js'

/**
 * How long the kernel may keep attributes if the disk is written: its size changes when a handle that truncated it is closed.
 * libfuse has one time for all files, and cannot make the kernel forget one. Where others write the image, names are not kept
 * either. Elsewhere names are kept: without that, readers beside a handle that had truncated the disk got old bytes from the
 * page cache (test/kernel/truncating.test.ts). A name that is gone answers ENOENT to the question for its attributes.
 */
const WRITTEN_VALID_SECONDS = 0
/** The size of fuse-native's buffers, which silently cut off longer strings. */
const MAX_BYTES = 1023
const STDERR = 2

export interface LibfuseRequest extends MountRequest {
  /** Whether others may write the image meanwhile. */
  readonly isShared: boolean
  /** Whether libfuse refuses all users but the mounting one and root. */
  readonly allowRoot: boolean
}

/**
 * Mounts and serves `operations`. Resolves when libfuse answers the kernel's INIT, to a descriptor of the device that the
 * caller closes. Throws MountError.
 */
export async function mountByLibfuse(
  request: LibfuseRequest,
  operations: FuseOperations,
): Promise<number> {
  const Fuse = loadFuseNative()
  const { mountpoint } = request
  const isRoot = process.geteuid?.() === 0
  check(mountpoint, isRoot)
  const options = libfuseOptions(request, isRoot)
  const fuse = new (class extends Fuse {
    // The package itself does not know most of these options.
    override _fuseOptions(): string {
      return options
    }

    override _op_fgetattr(signal: unknown, path: string, fh: number): void {
      const getattr: FuseOperations['getattr'] = (path, done) => operations.fgetattr(path, fh, done)
      super._op_fgetattr.call({ ops: { ...operations, getattr } } as never, signal, path, fh)
    }
  })(mountpoint, operations, { timeout: false })
  const before = new Set(fuseDevices())
  const { error, said } = await capturingStderr(
    () =>
      new Promise<Error | undefined>(resolve => fuse.mount(error => resolve(error ?? undefined))),
  )
  if (error) throw new MountError(why(mountpoint, said, error))
  if (said !== '') process.stderr.write(`${said.trimEnd().split('\n').map(printable).join('\n')}\n`)
  const device = fuseDevices().find(fd => !before.has(fd))
  // Without this descriptor the end of the mount would go unnoticed.
  if (device === undefined) throw new MountError(`${mountpoint}: the mount has ended at once`)
  return duplicate(device)
}

function check(mountpoint: string, isRoot: boolean): void {
  if (Buffer.byteLength(mountpoint) > MAX_BYTES) {
    throw new MountError(
      `${mountpoint}: a path of more than ${MAX_BYTES} bytes is too long for fuse-native; choose a shorter one, or leave out --transport libfuse`,
    )
  }
  try {
    fs.accessSync(DEVICE, fs.constants.R_OK | fs.constants.W_OK)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code !== 'EACCES') throw noDevice(error)
    throw new MountError(
      `${mountpoint}: ${DEVICE} is closed to you, and libfuse 2 needs it; leave out --transport libfuse, which asks fusermount3 to open it`,
    )
  }
  // The package takes a subvolume for a mount. That a mount is there has been ruled out before.
  if (fs.statSync(mountpoint).dev !== fs.statSync(path.dirname(mountpoint)).dev) {
    throw new MountError(
      `${mountpoint}: it is a subvolume, on which fuse-native does not mount; choose a folder in it, or leave out --transport libfuse`,
    )
  }
  // libfuse 2 calls fusermount, here a link to fusermount3, which has no option to allow this.
  if (!isRoot && fs.readdirSync(mountpoint).length > 0) {
    throw new MountError(
      `${mountpoint}: it is not empty, and libfuse 2 lets only root mount there; choose an empty folder, or leave out --transport libfuse`,
    )
  }
}

/** Returns libfuse's command line (fuse(8), version 2.9). Of a name that is too long it keeps the end. */
export function libfuseOptions(request: LibfuseRequest, isRoot: boolean): string {
  const { isWritable, isShared, allowOther, allowRoot, defaultPermissions, fsname } = request
  const options = [
    ...flagNames(flagsOf(request)),
    'subtype=vimgfs',
    // Otherwise a write request has 4 KiB at most.
    'big_writes',
    'use_ino',
    'atomic_o_trunc',
    // Node numbers must live as long as the mount, for NFS.
    'noforget',
    // Cached pages stay from one opening to the next if size and time have not changed.
    'auto_cache',
    // libfuse takes a file for the same as long as its name is: the pages of two would be mixed.
    ...(isShared ? ['direct_io'] : []),
    'ac_attr_timeout=0',
    `entry_timeout=${isShared ? WRITTEN_VALID_SECONDS : VALID_SECONDS}`,
    `attr_timeout=${isWritable || isShared ? WRITTEN_VALID_SECONDS : VALID_SECONDS}`,
    ...(defaultPermissions ? ['default_permissions'] : []),
    ...(allowRoot ? ['allow_root'] : allowOther ? ['allow_other'] : []),
    ...(isRoot ? ['nonempty'] : []),
  ]
  const withName = (name: string) =>
    `-o${options.join(',')},fsname=${name.replace(/[\\,]/g, c => `\\${c}`)}`
  let text = withName(fsname)
  for (let left = [...fsname]; Buffer.byteLength(text) > MAX_BYTES; ) {
    left = left.slice(1)
    text = withName(`…${left.join('')}`)
  }
  return text
}

/** Returns what went wrong, from the output of libfuse: the package's error says only that it failed. */
function why(mountpoint: string, said: string, error: Error): string {
  if (/exec fusermount/.test(said)) return explain(MISSING_HELPER, mountpoint, 'you may not mount')
  const line = said.trim().replace(/\s*\n\s*/g, '; ')
  return explain(line || `fuse-native says: ${error.message}`, mountpoint, 'you may not mount')
}

/**
 * Runs `act` and returns what libfuse and fusermount write to standard error meanwhile. Nothing else may write there.
 */
async function capturingStderr(
  act: () => Promise<Error | undefined>,
): Promise<{ error: Error | undefined; said: string }> {
  const kept = duplicate(STDERR)
  const file = memoryFile('vimgfs-libfuse')
  redirect(STDERR, file)
  let error: Error | undefined
  try {
    error = await act()
  } finally {
    redirect(STDERR, kept)
    closeFile(kept)
  }
  const text = Buffer.alloc(fs.fstatSync(file).size)
  fs.readSync(file, text, 0, text.length, 0)
  closeFile(file)
  return { error, said: text.toString() }
}

/** Returns this process's descriptors of /dev/fuse. */
function fuseDevices(): number[] {
  const { rdev } = fs.statSync(DEVICE)
  return fs
    .readdirSync('/proc/self/fd')
    .map(Number)
    .filter(fd => {
      try {
        return fs.fstatSync(fd).rdev === rdev
      } catch {
        // The descriptor of the listing itself, closed by now.
        return false
      }
    })
}
