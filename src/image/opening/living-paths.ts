/** Follows paths that others have chosen, without touching file systems whose server may be dead. */
import fs from 'node:fs'

/** File systems that ask another machine or process: if that one is dead, whoever looks at them hangs. */
const SERVED =
  /^(nfs|cifs|smb|fuse|9p|ceph|afs|autofs|gluster|lustre|gfs|ocfs|coda|beegfs|virtiofs)/
/** Symbolic links of one path, as in Linux. */
const MAX_LINKS = 40

interface Mount {
  readonly mountpoint: string
  readonly type: string
  readonly device: string
}

/**
 * Returns what `target` leads to, unless the way there crosses a mount point of `foreign`. Throws what the file system
 * throws.
 * @param folder a descriptor of the folder that a relative path begins in
 * @param foreign what `foreignMounts` returned
 */
export function statLiving(
  target: Buffer,
  folder: number,
  foreign: ReadonlySet<string>,
): fs.BigIntStats | undefined {
  const isAbsolute = target[0] === '/'.charCodeAt(0)
  // Names are bytes, and latin1 keeps each of them.
  let done = isAbsolute ? '' : bytesOf(fs.readlinkSync(`/proc/self/fd/${folder}`, 'buffer'))
  const rest = bytesOf(target).split('/').reverse()
  for (let links = 0; rest.length > 0; ) {
    const name = rest.pop() as string
    if (name === '' || name === '.') continue
    if (name === '..') {
      done = done.slice(0, Math.max(0, done.lastIndexOf('/')))
      continue
    }
    const at = `${done}/${name}`
    if (foreign.has(at)) return undefined
    const path = Buffer.from(at, 'latin1')
    if (!fs.lstatSync(path).isSymbolicLink()) {
      done = at
      continue
    }
    if (++links > MAX_LINKS) return undefined
    const link = bytesOf(fs.readlinkSync(path, 'buffer'))
    if (link.startsWith('/')) done = ''
    rest.push(...link.split('/').reverse())
  }
  return fs.statSync(Buffer.from(done === '' ? '/' : done, 'latin1'), { bigint: true })
}

/** Returns the mount points of served file systems that no path to a file of `own` needs to cross. */
export function foreignMounts(
  own: readonly fs.BigIntStats[],
  mounts: readonly Mount[],
): Set<string> {
  const devices = new Set(own.map(({ dev }) => deviceName(dev)))
  const wanted = mounts.filter(({ device }) => devices.has(device))
  const isOnTheWay = (mountpoint: string) =>
    wanted.some(mount => `${mount.mountpoint}/`.startsWith(`${mountpoint}/`))
  return new Set(
    mounts
      .filter(({ type, mountpoint }) => SERVED.test(type) && !isOnTheWay(mountpoint))
      .map(({ mountpoint }) => bytesOf(Buffer.from(mountpoint))),
  )
}

const bytesOf = (name: Buffer): string => name.toString('latin1')

/** "major:minor", as the list of mounts has it (makedev(3)). */
function deviceName(dev: bigint): string {
  const major = ((dev >> 8n) & 0xfffn) | ((dev >> 32n) & ~0xfffn)
  const minor = (dev & 0xffn) | ((dev >> 12n) & 0xffffff00n)
  return `${major}:${minor}`
}
