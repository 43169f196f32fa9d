/**
 * Finds the file systems that stand on files of a mount: by loop devices, their partitions, device mapper and md. Reads the
 * kernel's lists only; no file of a mount is touched.
 */
import fs from 'node:fs'
import { listMounts, type MountInfo } from '../io/mountinfo.js'
import { linkOf, list, processIds, textOf } from '../io/processes.js'

/** Loop devices on files of file systems on loop devices, and so on. */
const MAX_LEVELS = 8

export interface StandingMount {
  readonly mountpoint: string
  /** How this process reaches it: also in another mount namespace. */
  readonly path: string
  readonly id: string
  /** The device number of the file system. */
  readonly device: string
  readonly type: string
  readonly source: string
}

export interface Standing {
  /** Loop devices over the files themselves: `/dev/loop0`. */
  readonly loops: readonly string[]
  /** File systems that can be written, once each. What stands on another one of them comes before it. */
  readonly mounts: readonly StandingMount[]
}

export interface Seen {
  readonly mount: MountInfo
  readonly path: string
}

/**
 * Returns what stands on `files`, names in the root of the mount with the device number `device`.
 * @param seen the mounts of all namespaces
 * @param sys where sysfs is mounted
 */
export function standingOn(
  device: string,
  files: readonly string[],
  seen: readonly Seen[] = allMounts(),
  sys = '/sys',
): Standing {
  const places = seen
    .filter(({ mount }) => mount.device === device)
    .flatMap(({ mount }) => files.map(file => `${mount.mountpoint}/${file}`))
  const loops = loopsOver(sys, file => places.includes(file))
  const found = new Map<string, StandingMount>()
  let devices = devicesOn(sys, loops)
  for (let level = 0; level < MAX_LEVELS && devices.size > 0; level++) {
    const above = seen.filter(({ mount }) => !found.has(mount.device) && standsOn(mount, devices))
    for (const { mount, path } of above) {
      const { mountpoint, id, device, type, source } = mount
      if (!found.has(device)) found.set(device, { mountpoint, path, id, device, type, source })
    }
    const folders = above.map(({ mount }) => mount.mountpoint)
    const isAbove = (file: string) => folders.some(folder => file.startsWith(`${folder}/`))
    devices = devicesOn(sys, loopsOver(sys, isAbove))
  }
  const isWritable = ({ device }: StandingMount) =>
    seen.some(({ mount }) => mount.device === device && !/^ro(,|$)/.test(mount.options))
  return {
    loops: loops.map(name => `/dev/${name}`),
    mounts: [...found.values()].filter(isWritable).reverse(),
  }
}

/** Returns the mounts of all mount namespaces, those of this process first. */
function allMounts(): Seen[] {
  const seen: Seen[] = listMounts().map(mount => ({ mount, path: mount.mountpoint }))
  const namespaces = new Set([linkOf('/proc/self/ns/mnt')])
  for (const pid of processIds()) {
    const namespace = linkOf(`/proc/${pid}/ns/mnt`)
    if (namespace === undefined || namespaces.has(namespace)) continue
    namespaces.add(namespace)
    for (const mount of listMounts(pid)) {
      seen.push({ mount, path: `/proc/${pid}/root${mount.mountpoint}` })
    }
  }
  return seen
}

/** Returns the names of loop devices over files that `isOne` accepts (sysfs, block/loop). */
const loopsOver = (sys: string, isOne: (file: string) => boolean): string[] =>
  list(`${sys}/block`).filter(name => {
    const file = name.startsWith('loop') && textOf(`${sys}/block/${name}/loop/backing_file`)
    return typeof file === 'string' && isOne(file)
  })

/** Returns the block devices `names`, their partitions, and all devices that are made of them, with their numbers. */
function devicesOn(sys: string, names: readonly string[]): Map<string, string> {
  const found = new Map<string, string>()
  const add = (name: string) => {
    if (found.has(name)) return
    const folder = `${sys}/class/block/${name}`
    found.set(name, textOf(`${folder}/dev`) ?? '')
    for (const part of list(folder)) if (fs.existsSync(`${folder}/${part}/partition`)) add(part)
    for (const holder of list(`${folder}/holders`)) add(holder)
  }
  for (const name of names) add(name)
  // btrfs may name another one of its devices as the source.
  for (const id of list(`${sys}/fs/btrfs`)) {
    const members = list(`${sys}/fs/btrfs/${id}/devices`)
    if (members.some(member => found.has(member))) for (const member of members) add(member)
  }
  return found
}

function standsOn({ device, source }: MountInfo, devices: Map<string, string>): boolean {
  const numbers = [...devices.values()]
  if (numbers.includes(device)) return true
  if (!source.startsWith('/dev/')) return false
  try {
    const { rdev } = fs.statSync(source)
    return numbers.includes(numberText(rdev))
  } catch {
    return false
  }
}

/** Returns a device number as sysfs writes it (makedev(3)). */
export function numberText(device: number): string {
  const major = ((device >>> 8) & 0xfff) + Math.floor(device / 2 ** 44) * 2 ** 12
  const minor = (device & 0xff) + Math.floor((device % 2 ** 44) / 2 ** 20) * 2 ** 8
  return `${major}:${minor}`
}
