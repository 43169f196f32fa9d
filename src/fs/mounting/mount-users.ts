/** Finds the users of a mount: loop devices over its files, what uses those, and processes. */
import fs from 'node:fs'
import path from 'node:path'
import { linkOf, list, processIds, processName, textOf } from '../../io/processes.js'
import { listMounts, type MountInfo } from '../../io/mountinfo.js'

/** The largest number of users in a message. */
const MAX_NAMED = 3

export interface MountUsers {
  /** Names the users; empty if none can be seen. */
  readonly who: string
  /** The commands that end the use, in order; empty for processes. */
  readonly wayOut: string
}

/** Finds the users of `mount`, the nearest first. Touches no file of it. */
export function usersOf(mount: MountInfo): MountUsers {
  const above = submounts(mount)
  const loops = loopUsers(mount.mountpoint)
  const named = [...above, ...loops].slice(0, MAX_NAMED)
  if (named.length > 0) {
    const commands = [...new Set(named.flatMap(({ commands }) => commands))]
    return { who: named.map(({ who }) => who).join(' and '), wayOut: commands.join(' && ') }
  }
  return { who: openers(mount.mountpoint).map(processName).join(' and '), wayOut: '' }
}

/** Names the users of the file at `path` of a mount: loop devices, what uses those, and processes. Empty if none can be seen. */
export function usersOfFile(path: string): string {
  const loops = loopUsers(path).map(({ who }) => who)
  const mappers = processIds().filter(pid => pid !== process.pid && maps(pid, path))
  const processes = [...new Set([...openers(path), ...mappers])].map(processName)
  return [...loops, ...processes].slice(0, MAX_NAMED).join(' and ')
}

const maps = (pid: number, path: string): boolean =>
  textOf(`/proc/${pid}/maps`)
    ?.split('\n')
    .some(line => line.endsWith(` ${path}`)) === true

interface User {
  readonly who: string
  readonly commands: readonly string[]
}

/** Finds mounts on files of the mount, or on top of it. */
function submounts({ mountpoint, id }: MountInfo): User[] {
  return listMounts()
    .filter(other => other.id !== id && isBelow(other.mountpoint, mountpoint))
    .map(({ mountpoint: at, source }) => {
      return { who: `the mount of ${source} on ${at}`, commands: [`umount ${at}`] }
    })
}

/** Finds loop devices whose file is below `folder` (sysfs, block/loop). */
function loopUsers(folder: string): User[] {
  return list('/sys/block')
    .filter(name => name.startsWith('loop'))
    .flatMap(name => {
      const file = textOf(`/sys/block/${name}/loop/backing_file`)
      if (file === undefined || !isBelow(file, folder)) return []
      const uses = usesOf(name, new Set())
      const parts = uses.map(({ who }) => who).filter(who => who !== '')
      const text = parts.length > 0 ? `: ${parts.join(', ')}` : ''
      const detach = `losetup -d /dev/${name}`
      const commands = [...uses.flatMap(({ commands }) => commands), detach]
      return { who: `/dev/${name} (${path.basename(file)})${text}`, commands }
    })
}

/** Finds what uses the block device `name`, its partitions and the devices on top of those. */
function usesOf(name: string, seen: Set<string>): User[] {
  if (seen.has(name)) return []
  seen.add(name)
  const folder = `/sys/class/block/${name}`
  const mapped = textOf(`${folder}/dm/name`)
  const device = mapped === undefined ? `/dev/${name}` : `/dev/mapper/${mapped}`
  const number = textOf(`${folder}/dev`)
  // btrfs mounts have their own device number; they name the block device as the source.
  const mounts = listMounts().filter(
    ({ device: other, source }) =>
      other === number || source === device || source === `/dev/${name}`,
  )
  const places = [...new Set(mounts.map(({ mountpoint }) => mountpoint))]
  const isSwap = textOf('/proc/swaps')
    ?.split('\n')
    .some(line => line.startsWith(`${device} `))
  const partitions = list(folder).filter(part => fs.existsSync(`${folder}/${part}/partition`))
  const holders = list(`${folder}/holders`)
  return [
    ...places.map(at => ({ who: `${device} is mounted on ${at}`, commands: [`umount ${at}`] })),
    ...(isSwap ? [{ who: `${device} is swapped to`, commands: [`swapoff ${device}`] }] : []),
    ...partitions.flatMap(part => usesOf(part, seen)),
    ...holders.flatMap(holder => heldBy(holder, name, seen)),
  ]
}

/** Describes how the device `holder`, of device-mapper or md, uses the device `name`. */
function heldBy(holder: string, name: string, seen: Set<string>): User[] {
  const uses = usesOf(holder, seen)
  const mapped = textOf(`/sys/class/block/${holder}/dm/name`)
  const end = mapped === undefined ? `mdadm --stop /dev/${holder}` : `dmsetup remove ${mapped}`
  const who = `/dev/${name} is part of /dev/${mapped === undefined ? holder : `mapper/${mapped}`}`
  // It can be ended once nothing uses it.
  return [{ who, commands: [] }, ...uses, { who: '', commands: [end] }]
}

/** Finds processes that have a file below `folder` open, or work in it. */
function openers(folder: string): number[] {
  const found: number[] = []
  for (const pid of processIds()) {
    const links = [
      `/proc/${pid}/cwd`,
      `/proc/${pid}/root`,
      ...list(`/proc/${pid}/fd`).map(fd => `/proc/${pid}/fd/${fd}`),
    ]
    if (pid !== process.pid && links.some(link => isBelow(linkOf(link) ?? '', folder)))
      found.push(pid)
    if (found.length === MAX_NAMED) break
  }
  return found
}

const isBelow = (file: string, folder: string): boolean =>
  file === folder || file.startsWith(folder === '/' ? '/' : `${folder}/`)
