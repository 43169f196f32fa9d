/**
 * Mounts and unmounts: with mount(2) if this user may, else with `fusermount3`, which may do it and sends the device's
 * descriptor over a socket (libfuse, _FUSE_COMMFD).
 */
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import { constants } from 'node:os'
import { errnoName, inWords, MountError, SystemError } from '../../errors.js'
import * as libc from '../../io/libc.js'
import { isText } from '../../io/named-file.js'
import { flagNames } from './mount-flags.js'
import { findMount, FS_TYPE, ownerOf, type MountInfo } from '../../io/mountinfo.js'
import { usersOf } from './mount-users.js'
import { MAX_READ_BYTES } from '../protocol/protocol.js'
import { whyNoProcess } from './rlimits.js'

export const DEVICE = '/dev/fuse'
/** The helper of libfuse 3 first; that of libfuse 2 does the same. */
const HELPERS = ['fusermount3', 'fusermount']

export interface MountRequest {
  readonly mountpoint: string
  readonly fsname: string
  readonly isWritable: boolean
  /** Flags of mount(2), without read-only. */
  readonly flags: number
  /** Whether users other than the mounting one may use the mount. */
  readonly allowOther: boolean
  /** Whether the kernel checks modes. */
  readonly defaultPermissions: boolean
}

/** Mounts, and returns the device's descriptor; its first message is the kernel's INIT. Throws MountError. */
export function mountFuse(request: MountRequest): number {
  const direct = mountDirectly(request)
  return typeof direct === 'number' ? direct : mountByHelper(request, direct.why)
}

/** Throws MountError, with the way out, if this user cannot mount on `mountpoint`. */
export function checkMountpoint(mountpoint: string): void {
  if (!isText(mountpoint)) {
    throw new MountError(
      `${mountpoint}: this name, or its folder, is not UTF-8; choose another folder`,
    )
  }
  let stat: fs.Stats
  try {
    stat = fs.statSync(mountpoint)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOTCONN') {
      throw new MountError(
        `${mountpoint}: a mount whose server has died is still there; remove it with vimgfs umount ${mountpoint}`,
      )
    }
    const why =
      code === 'ENOENT'
        ? `it does not exist; make it with mkdir ${mountpoint}`
        : `it cannot be used as a mount point: ${inWords(error)}`
    throw new MountError(`${mountpoint}: ${why}`)
  }
  if (!stat.isDirectory()) {
    throw new MountError(`${mountpoint}: it is not a folder; name an empty folder to mount on`)
  }
  if (fs.realpathSync(mountpoint) === '/') {
    throw new MountError(
      `${mountpoint}: the root of the file system is no mount point for a disk; choose an empty folder`,
    )
  }
  const mounted = findMount(mountpoint)
  if (mounted) {
    // The kernel's cached attributes may hide that a server has died. vimgfs umount works for that, too.
    const how = mounted.type === FS_TYPE ? `vimgfs umount ${mountpoint}` : `umount ${mountpoint}`
    throw new MountError(
      `${mountpoint}: ${mounted.source} (${mounted.type}) is mounted there already; unmount it with ${how} or choose another folder`,
    )
  }
  if (process.geteuid?.() !== 0) checkWritable(mountpoint)
}

/** Checks what fusermount3 requires of ordinary users. */
function checkWritable(mountpoint: string): void {
  try {
    fs.accessSync(mountpoint, fs.constants.W_OK)
  } catch {
    throw new MountError(`${mountpoint}: you may not write to it; mount on a folder of your own`)
  }
}

export const flagsOf = ({ flags, isWritable }: MountRequest): number =>
  flags | (isWritable ? 0 : libc.MS_RDONLY)

function mountDirectly(request: MountRequest): number | { why: string } {
  let device: number
  try {
    device = fs.openSync(DEVICE, 'r+')
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EACCES' || code === 'EPERM') return { why: `${DEVICE} is closed to you` }
    throw noDevice(error)
  }
  const data = [
    `fd=${device}`,
    'rootmode=40000',
    `max_read=${MAX_READ_BYTES}`,
    `user_id=${process.getuid?.()}`,
    `group_id=${process.getgid?.()}`,
    ...(request.defaultPermissions ? ['default_permissions'] : []),
    ...(request.allowOther ? ['allow_other'] : []),
  ].join(',')
  const flags = flagsOf(request)
  try {
    libc.mount(request.fsname, request.mountpoint, FS_TYPE, flags, data)
    return device
  } catch (error) {
    fs.closeSync(device)
    if (!(error instanceof SystemError)) throw error
    if (error.code === 'EPERM') return { why: 'you may not mount' }
    throw new MountError(`${request.mountpoint}: mounting failed: ${error.code}`)
  }
}

export const noDevice = (error: unknown): MountError =>
  new MountError(
    `${DEVICE} cannot be opened: ${inWords(error)}; load the kernel's module with modprobe fuse, or in a container pass --device ${DEVICE}`,
  )

function mountByHelper(request: MountRequest, why: string): number {
  const options = [
    ...flagNames(flagsOf(request)),
    `fsname=${request.fsname.replace(/[\\,]/g, c => `\\${c}`)}`,
    'subtype=vimgfs',
    `max_read=${MAX_READ_BYTES}`,
    ...(request.defaultPermissions ? ['default_permissions'] : []),
    ...(request.allowOther ? ['allow_other'] : []),
  ].join(',')
  const [ours, theirs] = libc.unixSocketPair()
  try {
    const failure = runHelper(['-o', options, '--', request.mountpoint], theirs)
    fs.closeSync(theirs)
    if (failure !== undefined) throw new MountError(explain(failure, request.mountpoint, why))
    const device = libc.receiveDescriptor(ours)
    if (device < 0) throw new MountError(`${request.mountpoint}: fusermount3 sent no descriptor`)
    return device
  } finally {
    fs.closeSync(ours)
  }
}

/** Runs fusermount3 with the socket as its descriptor 3. Returns its error message if it failed. */
function runHelper(args: readonly string[], socket?: number): string | undefined {
  for (const helper of HELPERS) {
    const { error, status, stderr } = spawnSync(helper, args, {
      stdio: ['ignore', 'ignore', 'pipe', ...(socket === undefined ? [] : [socket])],
      env: { ...process.env, LC_ALL: 'C', _FUSE_COMMFD: '3' },
      encoding: 'utf8',
      // No limit for unmounting: it writes back mapped pages, and storage may be slow.
      ...(socket !== undefined && { timeout: 30_000 }),
    })
    const code = (error as NodeJS.ErrnoException | undefined)?.code
    if (code === 'ENOENT') continue
    if (code === 'EAGAIN') return `${helper} cannot be started: ${whyNoProcess()}`
    if (error) return `${helper}: ${error.message}`
    return status === 0 ? undefined : stderr.trim().replace(/\s*\n\s*/g, '; ') || `${helper} failed`
  }
  return MISSING_HELPER
}

export const MISSING_HELPER =
  'fusermount3 is not installed; install it with apt-get install fuse3, or mount as root'

/** Returns our words for an error message of fusermount. */
export function explain(failure: string, mountpoint: string, why: string): string {
  if (failure === MISSING_HELPER) return `${mountpoint}: ${why} and ${failure}`
  if (failure.includes('user_allow_other')) {
    return `${mountpoint}: allow_other and allow_root need the line user_allow_other in /etc/fuse.conf; ask root to add it, or leave the option out`
  }
  if (/Permission denied/.test(failure) && failure.includes(DEVICE)) {
    return `${mountpoint}: ${DEVICE} is closed to you; ask root for access to it (chmod 666 ${DEVICE} is what distributions do)`
  }
  return `${mountpoint}: ${failure}`
}

/**
 * Unmounts `mount`. With `detach` the mount disappears at once, and programs that use it may finish. Throws MountError with
 * the reason, for example that it is in use.
 */
export function unmountFuse(mount: MountInfo, detach: boolean): void {
  try {
    libc.unmount(mount.mountpoint, detach ? libc.MNT_DETACH : 0)
    return
  } catch (error) {
    if (!(error instanceof SystemError)) throw error
    if (error.code !== 'EPERM') throw new MountError(unmountFailure(mount, error.errno))
  }
  const failure = runHelper(['-u', ...(detach ? ['-z'] : []), '--', mount.mountpoint])
  if (failure === undefined) return
  const { mountpoint } = mount
  if (/busy/i.test(failure)) throw new MountError(unmountFailure(mount, EBUSY))
  const owner = ownerOf(mount)
  throw new MountError(
    owner === process.getuid?.()
      ? `${mountpoint}: ${failure}`
      : `${mountpoint}: user ${owner} mounted it, and that user or root may unmount it`,
  )
}

const { EBUSY } = constants.errno

function unmountFailure(mount: MountInfo, errno: number): string {
  const { mountpoint } = mount
  if (errno === EBUSY) {
    const { who, wayOut } = usersOf(mount)
    const by = who === '' ? '' : ` by ${who}`
    const end = wayOut === '' ? 'close that' : `end that with ${wayOut}`
    return `${mountpoint}: it is in use${by} (fuser -vm ${mountpoint} shows by whom); ${end}, or detach it with vimgfs umount --lazy ${mountpoint}`
  }
  return `${mountpoint}: unmounting failed: ${errnoName(errno)}`
}
