/** Names the mount of an image that is in use. Only the kernel's lists are read: a mount itself may hang. */
import fs from 'node:fs'
import { ImageInUse } from '../../errors.js'
import { FS_TYPE, listMounts, type MountInfo } from '../../io/mountinfo.js'
import { deviceOfServer } from '../../io/processes.js'

/**
 * Returns `error`; or, if it says that the image is in use, an error that says what to do: it names the mount of vimgfs that has
 * the image open.
 * @param hint what to do if it is not mounted
 */
export function namingItsMount(error: unknown, hint = WAIT): unknown {
  if (!(error instanceof ImageInUse)) return error
  const mount = error.holders.map(mountOf).find(found => found !== undefined) ?? bySource(error)
  if (!mount) return new ImageInUse(error.message, error.holders, { ...error.context, hint })
  const { mountpoint } = mount
  return new ImageInUse(`it is mounted on ${mountpoint}`, error.holders, {
    ...error.context,
    hint: `unmount it first: vimgfs umount ${mountpoint}`,
  })
}

/** The hints of an image in use are about mounts. */
const WAIT = 'try again once that has ended'

/** Returns what `open` returns. Throws what it throws, with the mount named if the image is mounted. */
export function unlessMounted<T>(open: () => T): T {
  try {
    return open()
  } catch (error) {
    throw namingItsMount(error)
  }
}

function mountOf(pid: number): MountInfo | undefined {
  const device = deviceOfServer(pid)
  if (device === undefined) return undefined
  return listMounts().find(mount => mount.device === device && mount.type === FS_TYPE)
}

/** Servers of other users do not show which files they have open. Then the mount's source, the image's path, tells. */
function bySource({ context: { path = '' } }: ImageInUse): MountInfo | undefined {
  const names = [path, fs.realpathSync(path)]
  return listMounts().find(({ type, source }) => type === FS_TYPE && names.includes(source))
}
