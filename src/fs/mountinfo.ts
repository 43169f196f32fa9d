/** The kernel's list of mounts (proc(5), /proc/self/mountinfo). */
import fs from 'node:fs'
import path from 'node:path'

export interface MountInfo {
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

export function listMounts(): MountInfo[] {
  return fs
    .readFileSync('/proc/self/mountinfo', 'utf8')
    .split('\n')
    .filter(line => line !== '')
    .map(line => {
      const [before = '', after = ''] = line.split(' - ')
      const [, , device = '', , mountpoint = ''] = before.split(' ')
      const [type = '', source = '', options = ''] = after.split(' ')
      return { device, mountpoint: unescape(mountpoint), type, source: unescape(source), options }
    })
}

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
