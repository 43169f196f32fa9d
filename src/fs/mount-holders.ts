/** Where else a mount is: bind mounts of it, and mount namespaces of other processes that have it, too. */
import { deviceOfServer, linkOf, processIds, processName } from '../io/processes.js'
import { listMounts, type MountInfo } from './mountinfo.js'

export interface OtherPlace {
  /** Who has it there, and how it goes, for messages. */
  readonly who: string
  /** Whether unmounting it here is sure not to unmount it there. */
  readonly stays: boolean
}

/**
 * The places of what is mounted by `mount`. Once that has been unmounted the kernel may give its number to another
 * mount; the image tells them apart.
 *
 * @param except the id of the mount that is not meant
 */
export function otherPlaces(mount: MountInfo, except?: string): OtherPlace[] {
  const places: OtherPlace[] = bindMounts(listMounts(), mount, except).map(({ at, stays }) => {
    return { who: `it is mounted on ${at}, too; unmount that`, stays }
  })
  const own = linkOf('/proc/self/ns/mnt')
  const seen = new Set([own])
  // A server names nobody who uses its mount, so any other process of its namespace goes first.
  const servers = (pid: number): number => (deviceOfServer(pid) === undefined ? 0 : 1)
  for (const pid of processIds().sort((a, b) => servers(a) - servers(b) || a - b)) {
    const namespace = linkOf(`/proc/${pid}/ns/mnt`)
    // Kernel threads cannot hold a mount by themselves; ordinary users do not see the links of others.
    if (namespace === undefined || seen.has(namespace)) continue
    seen.add(namespace)
    const [there] = bindMounts(listMounts(pid), mount)
    if (!there) continue
    const who = `${processName(pid)} has it in another mount namespace (on ${there.at}); end that, or unmount it there: nsenter -t ${pid} -m umount ${there.at}`
    places.push({ who, stays: there.stays })
  }
  return places
}

function bindMounts(
  mounts: readonly MountInfo[],
  { device, type, source }: MountInfo,
  except?: string,
): { at: string; stays: boolean }[] {
  return mounts
    .filter(other => other.device === device && other.type === type && other.source === source)
    .filter(other => other.id !== except)
    .map(mount => {
      // The kernel unmounts copies of a mount that lie on copies of the mount below it.
      const below = mounts.find(({ id }) => id === mount.parent)
      return { at: mount.mountpoint, stays: below?.isPrivate ?? true }
    })
}
