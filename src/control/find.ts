/** Finds the servers that have an image mounted, or the one of a mount point. */
import fs from 'node:fs'
import path from 'node:path'
import { MountError, printable } from '../errors.js'
import { askServer } from '../fs/mounting/running-server.js'
import { FS_TYPE, listMounts, mountOn, type MountInfo, ownerOf } from '../io/mountinfo.js'
import { deviceOfServer, list, serverOfDevice, textOf } from '../io/processes.js'
import { isAbandoned } from '../io/unix-sockets.js'
import { NobodyListens, ServerConnection } from './client.js'
import { openFolder, openForCommand, type SocketFolder } from './folders.js'
import { imageKey, parseName } from './names.js'

/** How long a server may take to say its status. */
const STATUS_MS = 8_000

/**
 * Connects to the server that has the image `name` mounted, or whose mount point `name` is; to one that writes, if there are
 * several. Returns undefined if no server has the image. Throws MountError.
 */
export async function connectTo(name: string): Promise<ServerConnection | undefined> {
  const mount = mountOn(name)
  return mount ? connectToMount(mount) : connectToImage(name)
}

/**
 * Connects to the server of `mount`. Throws MountError.
 * @param timeoutMs how long it may take to greet
 */
export async function connectToMount(
  mount: MountInfo,
  timeoutMs?: number,
): Promise<ServerConnection> {
  const { mountpoint } = mount
  const owner = ownerOf(mount)
  const uid = process.geteuid?.()
  if (uid !== 0 && uid !== owner) {
    throw new MountError(
      `${mountpoint}: another user has mounted it; only that user and root may do this`,
    )
  }
  const isOf = ({ greeting, peer }: ServerConnection) =>
    greeting.device === mount.device && peer.uid === owner
  const pid = serverOfDevice(mount.device, owner)
  const found =
    (pid !== undefined && (await search(name => name.pid === pid, isOf, timeoutMs))) ||
    (await connectAsTold(mount, timeoutMs))
  if (found && isOf(found)) return found
  if (found) found.close()
  throw new MountError(
    `${mountpoint}: its server takes no commands: it is of an older version, has no socket (its log says why), or has ended; unmount it with vimgfs umount ${mountpoint}, and work on the image`,
  )
}

/** Connects to the socket that the mount itself names: the server's folder may be another one than this command's. */
async function connectAsTold(
  mount: MountInfo,
  timeoutMs?: number,
): Promise<ServerConnection | undefined> {
  const status = await askServer(mount, STATUS_MS)
  if (typeof status === 'string' || typeof status.socket !== 'string') return undefined
  const folder = openFolder(path.dirname(status.socket), ownerOf(mount))
  if (typeof folder === 'string') return undefined
  try {
    return await connect(folder, path.basename(status.socket), status.pid, timeoutMs)
  } finally {
    folder.close()
  }
}

async function connectToImage(name: string): Promise<ServerConnection | undefined> {
  const stat = fs.statSync(name, { bigint: true, throwIfNoEntry: false })
  if (!stat) return undefined
  const key = imageKey(stat)
  const isOf = ({ greeting, peer }: ServerConnection) =>
    peer.uid === process.geteuid?.() || hasOpen(peer.pid, key, greeting.isWritable)
  const isWriting = (one: ServerConnection) => one.greeting.isWritable && isOf(one)
  const isNamed = (parsed: { readonly key: string }) => parsed.key === key
  const found = (await search(isNamed, isWriting)) ?? (await search(isNamed, isOf))
  if (found) return found
  const mount = mountOf(name)
  const told = mount && (await connectAsTold(mount))
  if (told && told.greeting.device === mount.device && isOf(told)) return told
  told?.close()
  return undefined
}

/**
 * Returns the mounts of the image `name` that this user may end, the last one first; undefined if `name` is no file.
 */
export async function mountsOfImage(name: string): Promise<MountInfo[] | undefined> {
  const stat = fs.statSync(name, { bigint: true, throwIfNoEntry: false })
  if (!stat || stat.isDirectory()) return undefined
  const key = imageKey(stat)
  const names = [path.resolve(name), fs.realpathSync(name)]
  const user = process.geteuid?.()
  const isRight = async (mount: MountInfo) =>
    names.includes(mount.source) || (await servesImage(mount, key))
  const mounts = listMounts().filter(
    mount => mount.type === FS_TYPE && (user === 0 || ownerOf(mount) === user),
  )
  const isIts = await Promise.all(mounts.map(isRight))
  return mounts.filter((_, index) => isIts[index]).reverse()
}

/** Reports whether the server of `mount` has the image with that key. One that does not answer counts as having another. */
async function servesImage(mount: MountInfo, key: string): Promise<boolean> {
  try {
    const { greeting, peer } = await greeted(mount)
    return hasOpen(peer.pid, key, greeting.isWritable)
  } catch {
    return false
  }
}

async function greeted(mount: MountInfo): Promise<Pick<ServerConnection, 'greeting' | 'peer'>> {
  const server = await connectToMount(mount, STATUS_MS)
  server.close()
  return server
}

/** Returns the mount whose source is the image `name`, as it is unless `fsname=` says another one. */
function mountOf(name: string): MountInfo | undefined {
  const names = [path.resolve(name), fs.realpathSync(name)]
  return listMounts().find(({ type, source }) => type === FS_TYPE && names.includes(source))
}

/** Returns a connection to the first server whose name and greeting fit, and removes the sockets of dead ones. */
async function search(
  isNamed: (name: { readonly key: string; readonly pid: number }) => boolean,
  isRight: (connection: ServerConnection) => boolean,
  timeoutMs?: number,
): Promise<ServerConnection | undefined> {
  const folders = openForCommand(process.geteuid?.() ?? 0)
  try {
    for (const folder of folders) {
      for (const name of folder.names()) {
        const parsed = parseName(name)
        if (!parsed || parsed.isHidden || !isNamed(parsed)) continue
        const connection = await connect(folder, name, parsed.pid, timeoutMs)
        if (connection && isRight(connection)) return connection
        connection?.close()
      }
    }
    return undefined
  } finally {
    for (const folder of folders) folder.close()
  }
}

async function connect(
  folder: SocketFolder,
  name: string,
  pid: number,
  timeoutMs?: number,
): Promise<ServerConnection | undefined> {
  try {
    return await ServerConnection.open(
      folder.at(name),
      `the server of a mounted image (process ${pid})`,
      timeoutMs,
    )
  } catch (error) {
    if (!(error instanceof NobodyListens)) {
      // A server that has lost its mount cannot help: the image's locks tell whether it has still to be waited for.
      if (!hasMount(pid)) return undefined
      throw error
    }
    try {
      if (isAbandoned(folder.at(name))) fs.unlinkSync(folder.at(name))
    } catch {
      // Another command has removed it.
    }
    return undefined
  }
}

/** Reports whether the mount of server `pid` is there, as far as this mount namespace shows. */
function hasMount(pid: number): boolean {
  const device = deviceOfServer(pid)
  return listMounts().some(mount => mount.type === FS_TYPE && mount.device === device)
}

/**
 * Reports whether process `pid` has the image open. A server of another user tells root which image it serves, and must not
 * be believed without this: it could claim any image.
 */
function hasOpen(pid: number, key: string, forWriting: boolean): boolean {
  return list(`/proc/${pid}/fd`).some(fd => {
    try {
      const stat = fs.statSync(`/proc/${pid}/fd/${fd}`, { bigint: true })
      return imageKey(stat) === key && (!forWriting || isOpenForWriting(pid, fd))
    } catch {
      return false
    }
  })
}

/** Reads fdinfo (proc_pid_fdinfo(5)): flags are octal, and their last digit is the access mode. */
function isOpenForWriting(pid: number, fd: string): boolean {
  const mode = /^flags:\s*[0-7]*([0-7])$/m.exec(textOf(`/proc/${pid}/fdinfo/${fd}`) ?? '')
  return mode !== null && (Number(mode[1]) & 3) !== 0
}

/** Returns how messages call the mount of a server. */
export const placeOf = ({ greeting }: ServerConnection): string =>
  printable(path.resolve(greeting.mountpoint))
