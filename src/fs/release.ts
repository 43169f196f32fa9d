/**
 * Images that a server of this user's still holds: one whose mount has gone saves what was written and ends, so
 * it is waited for; one whose mount is there is named with its place.
 */
import fs from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { AlreadyMounted, ImageInUse } from '../errors.js'
import { Interrupted } from '../interruption.js'
import {
  deviceOfServer,
  isEndingServer,
  processName,
  serverOfDevice,
  startOf,
  userOf,
} from '../io/processes.js'
import { FS_TYPE } from './mount.js'
import { findMount, listMounts, type MountInfo, ownerOf } from './mountinfo.js'
import { askServer } from './running-server.js'

/** How long a server may take to save what was written. */
const ENDING_LIMIT_MS = 120_000
/** A server whose mount has gone knows of it at once, unless programs still have files of it open. */
const DETACHED_LIMIT_MS = 20_000
const NOTICE_MS = 2_000
/** How often it is looked whether a holder has ended, and how often at most before the image is tried again. */
const TRY_MS = 20
const MAX_TRIES = 25
const OTHERS_TRY_MS = 1_000

/**
 * What `open` returns. As long as an ending server of ours is in its way, tries again. Throws what
 * `open` throws, and Interrupted.
 *
 * @param say told once, with a line for the user, when it takes long
 */
export async function whenReleased<T>(
  open: () => T,
  say: (line: string) => void,
  signal?: AbortSignal,
): Promise<T> {
  const started = Date.now()
  let lastEnding = Number.NEGATIVE_INFINITY
  let hasSaid = false
  for (;;) {
    let obstacle: ImageInUse
    try {
      return open()
    } catch (error) {
      if (!(error instanceof ImageInUse)) throw error
      obstacle = error
    }
    const { holders, context } = obstacle
    const haveLost = await Promise.all(holders.map(hasLostMount))
    // Others who wait try it, too, and are in the way while they do.
    const ending = holders.filter((_, index) => haveLost[index])
    if (ending.length > 0) lastEnding = Date.now()
    if (Date.now() - lastEnding > OTHERS_TRY_MS) throw obstacle
    const waited = Date.now() - started
    const who = ending.map(processName).join(' and ')
    const isEnding = ending.every(isEndingServer)
    if (waited > (isEnding ? ENDING_LIMIT_MS : DETACHED_LIMIT_MS)) throw stillHeld(obstacle, who)
    if (waited > NOTICE_MS && !hasSaid && who !== '') {
      hasSaid = true
      say(`${context.path}: waiting for ${who}, which was unmounted and still has it open`)
    }
    const starts = holders.map(startOf)
    const isUnchanged = () => holders.every((pid, index) => startOf(pid) === starts[index])
    for (let tries = 0; tries < MAX_TRIES && (tries === 0 || isUnchanged()); tries++) {
      await sleep(TRY_MS)
      if (signal?.aborted) throw new Interrupted()
    }
  }
}

/** Whether process `pid` is a server of ours whose mount is in no list any more. */
async function hasLostMount(pid: number): Promise<boolean> {
  const user = process.geteuid?.()
  const owner = userOf(pid)
  if (owner === undefined || (user !== 0 && owner !== user)) return false
  if (isEndingServer(pid)) return true
  const device = deviceOfServer(pid)
  if (device === undefined) return false
  if (serverOfDevice(device, owner) !== pid) return true
  const isOurs = (mount: MountInfo) =>
    mount.device === device && mount.type === FS_TYPE && ownerOf(mount) === owner
  const mount = listMounts().find(isOurs)
  if (!mount) return !listMounts(pid).some(isOurs)
  // The kernel gives the number of a mount that has gone to the next one.
  const server = await askServer(mount, ANSWER_MS)
  return typeof server !== 'string' && server.pid !== pid
}

function stillHeld({ message, context, holders }: ImageInUse, who: string): ImageInUse {
  return new ImageInUse(message, holders, {
    ...context,
    hint: `it was unmounted, but programs still use it, or its storage hangs; end those that use it, or ${who} itself`,
  })
}

/** `error`, or where it is about an image that this user has mounted, the error that says where. */
export async function namingItsMount(error: unknown, image: string): Promise<unknown> {
  if (!(error instanceof ImageInUse)) return error
  for (const pid of error.holders) {
    const device = deviceOfServer(pid)
    const mount = device && listMounts().find(other => other.device === device)
    if (!mount || mount.type !== FS_TYPE) continue
    const place = await placeOf(mount, image)
    if (place?.pid !== pid) continue
    const { message, context } = error
    const isSame = !place.readOnly || !message.endsWith('reads it')
    // Who wants to write is not served by a mount to read.
    if (!isSame || ownerOf(mount) !== process.getuid?.()) {
      const access = place.readOnly ? 'read-only' : 'read-write'
      const where = `, which has it mounted ${access} on ${mount.mountpoint},`
      const words = message.replace(/ (reads|writes|has locked) it$/, `${where}$&`)
      return new ImageInUse(words, error.holders, context)
    }
    return new AlreadyMounted(
      `${context.path}: ${message}; it is mounted on ${mount.mountpoint} already: use that, unmount it with vimgfs umount ${mount.mountpoint}, or read the image beside it with -o ro,force-share`,
    )
  }
  return error
}

/** Throws AlreadyMounted where `mountpoint` is a mount of `image` by this user. */
export async function checkNotMounted(image: string, mountpoint: string): Promise<void> {
  const mount = findMount(mountpoint)
  if (!mount || mount.type !== FS_TYPE || ownerOf(mount) !== process.getuid?.()) return
  if (!(await placeOf(mount, image))) return
  throw new AlreadyMounted(
    `${mountpoint}: ${image} is mounted there already; unmount it with vimgfs umount ${mountpoint}, or use it as it is`,
  )
}

const ANSWER_MS = 2_000

/** What the server of `mount` says, where it is `image` that is mounted there. */
async function placeOf(mount: MountInfo, image: string) {
  const server = await askServer(mount, ANSWER_MS)
  if (typeof server === 'string') return undefined
  return isSameFile(server.image, image) ? server : undefined
}

function isSameFile(one: string, other: string): boolean {
  try {
    return fs.realpathSync(one) === fs.realpathSync(path.resolve(other))
  } catch {
    return false
  }
}
