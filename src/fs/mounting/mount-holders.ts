/** Finds the other places of a mount: bind mounts, and mount namespaces of other processes. */
import { deviceOfServer, linkOf, processIds, processName } from '../../io/processes.js'
import { listMounts, type MountInfo } from '../../io/mountinfo.js'

export interface OtherPlace {
  /** Names the holder of the mount there, and how to remove it, for messages. */
  readonly who: string
  /** Whether it certainly stays there when it is unmounted here. */
  readonly stays: boolean
}

/**
 * Returns the other places of `mount`. After unmounting, the kernel may give the same device number to another mount; the
 * image tells them apart.
 *
 * @param except the id of a mount to leave out
 */
export function otherPlaces(mount: MountInfo, except?: string): OtherPlace[] {
  const places: OtherPlace[] = bindMounts(listMounts(), mount, except).map(({ at, stays }) => {
    return { who: `it is mounted on ${at}, too; unmount that`, stays }
  })
  const own = linkOf('/proc/self/ns/mnt')
  const seen = new Set([own])
  // Name a server last: it does not use the mount itself, so another process of its namespace says more.
  const servers = (pid: number): number => (deviceOfServer(pid) === undefined ? 0 : 1)
  for (const pid of processIds().sort((a, b) => servers(a) - servers(b) || a - b)) {
    const namespace = linkOf(`/proc/${pid}/ns/mnt`)
    // Undefined for kernel threads, which cannot hold a mount, and for processes that this user may not see.
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
      // The kernel also unmounts copies that lie on shared copies of the mount below.
      const below = mounts.find(({ id }) => id === mount.parent)
      return { at: mount.mountpoint, stays: below?.isPrivate ?? true }
    })
}
