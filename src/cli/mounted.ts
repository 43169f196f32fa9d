/** Commands on an image that is mounted: the server of the mount does the work. */
import type { ServerConnection } from '../control/client.js'
import { connectTo } from '../control/find.js'
import type { Request } from '../control/protocol.js'
import { MountError, printable } from '../errors.js'
import { FLUSH_TIMEOUT_MS, runAsOwner } from '../fs/mounting/running-server.js'
import { FS_TYPE, listMounts, mountOn } from '../io/mountinfo.js'
import { complain } from './output.js'
import { Progress, type ProgressOptions } from './progress.js'

/** How long the kernel and a server may take to say the size of a file. */
const ANSWER_MS = 10_000

/**
 * Returns what `act` returns, which works through the server that has `name` mounted for writing, or whose mount point `name`
 * is. Returns undefined if there is none. Throws what `act` throws, and MountError.
 */
export async function ifMounted<T>(
  name: string,
  act: (server: ServerConnection, isMountpoint: boolean) => Promise<T>,
): Promise<{ readonly result: T } | undefined> {
  const server = await connectTo(name)
  if (!server) return undefined
  try {
    const isMountpoint = mountOn(name) !== undefined
    // A mount that only reads leaves the image to its locks.
    if (!server.greeting.isWritable && !isMountpoint) return undefined
    return { result: await act(server, isMountpoint) }
  } finally {
    server.close()
  }
}

/** Has the server do what `request` says. Shows the progress, and prints what the server says. Throws MountError. */
export async function ask(
  server: ServerConnection,
  request: Request,
  shown: ProgressOptions = {},
): Promise<unknown> {
  const progress = new Progress(1, { ...shown, isPart: true })
  try {
    return await server.ask(request, remark => {
      if ('progress' in remark) progress.update(remark.progress)
      else complain(`vimgfs: ${printable(remark.say)}\n`)
    })
  } finally {
    progress.end()
  }
}

/** Has the kernel learn the size of the disk's file, which the server has changed. Never throws. */
export async function learnSize({ greeting }: ServerConnection): Promise<void> {
  const { device, diskFiles } = greeting
  const mount = listMounts().find(one => one.device === device && one.type === FS_TYPE)
  if (mount) await runAsOwner(mount, 'stat', [`${mount.mountpoint}/${diskFiles[0]}`], ANSWER_MS)
}

/**
 * Has the kernel give the server all that programs have changed in its files by memory maps. Throws MountError.
 * @param say called with a line if that is not possible from here
 */
export async function syncFiles(
  { greeting }: ServerConnection,
  say: (line: string) => void,
): Promise<void> {
  const { device, mountpoint, diskFiles } = greeting
  const mount = listMounts().find(one => one.device === device && one.type === FS_TYPE)
  if (!mount) {
    say(
      `${mountpoint} is mounted in another mount namespace: what programs there have changed by memory maps, and not yet synced, may not be part of it`,
    )
    return
  }
  const files = diskFiles.map(file => `${mount.mountpoint}/${file}`)
  const { code, stderr } = await runAsOwner(mount, 'sync', ['--data', ...files], FLUSH_TIMEOUT_MS)
  if (code === 0) return
  const why =
    code === 'timeout'
      ? `its server has not done it in ${FLUSH_TIMEOUT_MS / 1000} s`
      : stderr.trim().split(': ').at(-1) || `sync ended with ${code}`
  throw new MountError(`${mount.mountpoint}: what was written could not be saved: ${why}`)
}
