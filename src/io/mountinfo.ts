/** The kernel's list of mounts (proc(5), /proc/self/mountinfo). */
import fs from 'node:fs'
import path from 'node:path'
import { textOf } from './processes.js'

/** The type of all mounts of this program. */
export const FS_TYPE = 'fuse.vimgfs'

export interface MountInfo {
  readonly id: string
  /** The id of the mount below it. */
  readonly parent: string
  /** Whether mounts and unmounts on it do not propagate, in neither direction. */
  readonly isPrivate: boolean
  /** "major:minor". */
  readonly device: string
  readonly mountpoint: string
  /** Options of this mount, such as `ro` and `nosuid`. */
  readonly flags: string
  readonly type: string
  readonly source: string
  /** Options of the file system; FUSE has `user_id=` there, the user who mounted. */
  readonly options: string
}

/** Returns the topmost mount at `mountpoint`, if there is one. */
export function findMount(mountpoint: string): MountInfo | undefined {
  return mountAt(realMountpoint(mountpoint))
}

/** Returns the mount of vimgfs at `mountpoint`, if there is one. */
export function mountOn(mountpoint: string): MountInfo | undefined {
  const mount = findMount(mountpoint)
  return mount?.type === FS_TYPE ? mount : undefined
}

/** Returns the same for a path from realMountpoint. Touches no file system: a dead or new one would hang. */
export function mountAt(real: string): MountInfo | undefined {
  return listMounts().findLast(mount => mount.mountpoint === real)
}

/** Returns the user id of the user who made a FUSE mount. */
export function ownerOf({ options }: MountInfo): number {
  return Number(/(?:^|,)user_id=([0-9]+)/.exec(options)?.[1] ?? 0)
}

/** Returns that user's group id at the time of mounting. */
export function groupOf({ options }: MountInfo): number {
  return Number(/(?:^|,)group_id=([0-9]+)/.exec(options)?.[1] ?? 0)
}

/** Returns the mounts that process `pid` sees; none if it has ended. */
export function listMounts(pid: number | 'self' = 'self'): MountInfo[] {
  const list = pid === 'self' ? fs.readFileSync('/proc/self/mountinfo', 'utf8') : mountsOf(pid)
  return list
    .split('\n')
    .filter(line => line !== '')
    .map(line => {
      const [before = '', after = ''] = line.split(' - ')
      const [id = '', parent = '', device = '', , mountpoint = '', flags = '', ...tags] =
        before.split(' ')
      const [type = '', source = '', options = ''] = after.split(' ')
      const isPrivate = !tags.some(tag => /^(shared|master):/.test(tag))
      const names = { mountpoint: unescape(mountpoint), source: unescape(source) }
      return { id, parent, isPrivate, device, flags, type, options, ...names }
    })
}

const mountsOf = (pid: number): string => textOf(`/proc/${pid}/mountinfo`) ?? ''

/**
 * Returns `mountpoint`, absolute and without symbolic links. If the list of mounts already has that name, the path is not
 * touched: its server may hang.
 */
export function realMountpoint(mountpoint: string): string {
  const absolute = path.resolve(mountpoint)
  try {
    const folder = fs.realpathSync(path.dirname(absolute))
    const real = path.join(folder, path.basename(absolute))
    return mountAt(real) ? real : fs.realpathSync(real)
  } catch {
    return absolute
  }
}

/** Decodes a path: space, tab, newline and backslash are written in octal. */
function unescape(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  )
}
