/** The kernel's list of mounts (proc(5), /proc/self/mountinfo). */
import fs from 'node:fs'
import path from 'node:path'
import { textOf } from '../io/processes.js'

export interface MountInfo {
  readonly id: string
  /** The id of the mount that it is on. */
  readonly parent: string
  /** Whether it neither sends what is mounted and unmounted on it to other mounts nor gets that from others. */
  readonly isPrivate: boolean
  /** "major:minor". */
  readonly device: string
  readonly mountpoint: string
  readonly type: string
  readonly source: string
  /** Of the file system: FUSE has the mounting user's `user_id=` there. */
  readonly options: string
}

/** The mount on top at `mountpoint`, if there is one. */
export function findMount(mountpoint: string): MountInfo | undefined {
  return mountAt(realMountpoint(mountpoint))
}

/** The same for a path as realMountpoint makes it. Asks no file system: a dead or new one would hang. */
export function mountAt(real: string): MountInfo | undefined {
  return listMounts().findLast(mount => mount.mountpoint === real)
}

/** The user who made a FUSE mount. */
export function ownerOf({ options }: MountInfo): number {
  return Number(/(?:^|,)user_id=([0-9]+)/.exec(options)?.[1] ?? 0)
}

/** The group of that user when the mount was made. */
export function groupOf({ options }: MountInfo): number {
  return Number(/(?:^|,)group_id=([0-9]+)/.exec(options)?.[1] ?? 0)
}

/** The mounts that process `pid` sees; none where it has ended. */
export function listMounts(pid: number | 'self' = 'self'): MountInfo[] {
  const list = pid === 'self' ? fs.readFileSync('/proc/self/mountinfo', 'utf8') : mountsOf(pid)
  return list
    .split('\n')
    .filter(line => line !== '')
    .map(line => {
      const [before = '', after = ''] = line.split(' - ')
      const [id = '', parent = '', device = '', , mountpoint = '', , ...tags] = before.split(' ')
      const [type = '', source = '', options = ''] = after.split(' ')
      const isPrivate = !tags.some(tag => /^(shared|master):/.test(tag))
      const names = { mountpoint: unescape(mountpoint), source: unescape(source) }
      return { id, parent, isPrivate, device, type, options, ...names }
    })
}

const mountsOf = (pid: number): string => textOf(`/proc/${pid}/mountinfo`) ?? ''

/**
 * `mountpoint`, absolute and without symbolic links. What is in the list of mounts by that name already
 * is not looked at: its server may hang.
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

/** Space, tab, newline and backslash are written in octal. */
function unescape(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal: string) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  )
}
