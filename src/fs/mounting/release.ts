/**
 * Handles images that another server of this user holds. If its mount has gone, the server saves what was written and ends,
 * so vimgfs waits for it. If it is still mounted, the error says where.
 */
import fs from 'node:fs'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { AlreadyMounted, ImageInUse } from '../../errors.js'
import { Interrupted } from '../../interruption.js'
import {
  deviceOfServer,
  isEndingServer,
  processName,
  serverOfDevice,
  startOf,
  userOf,
} from '../../io/processes.js'
import { findMount, FS_TYPE, listMounts, type MountInfo, ownerOf } from '../../io/mountinfo.js'
import { askServer } from './running-server.js'

/** How long a server may take to save what was written. */
const ENDING_LIMIT_MS = 120_000
/** A server learns at once that its mount has gone, unless programs still have files of it open. */
const DETACHED_LIMIT_MS = 20_000
const NOTICE_MS = 2_000
/** The time between looks whether a holder has ended, and the most looks before the image is tried again. */
const TRY_MS = 20
const MAX_TRIES = 25
const OTHERS_TRY_MS = 1_000

/**
 * Returns what `open` returns. Tries again while an ending server of this user holds the image. Throws what `open` throws,
 * and Interrupted.
 *
 * @param say called once with a line for the user, if it takes long
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
    // Other waiting commands hold the locks for a moment when they try.
    const ending = holders.filter((_, index) => haveLost[index])
    if (ending.length > 0) lastEnding = Date.now()
    // A process that is ending has no descriptors any more by which it is found, and keeps its locks a moment longer.
    const since = holders.length === 0 ? Math.max(lastEnding, started) : lastEnding
    if (Date.now() - since > OTHERS_TRY_MS) throw obstacle
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
    const mostTries = holders.length === 0 ? 1 : MAX_TRIES
    for (let tries = 0; tries < mostTries && (tries === 0 || isUnchanged()); tries++) {
      await sleep(TRY_MS)
      if (signal?.aborted) throw new Interrupted()
    }
  }
}

/** Reports whether process `pid` is a server of this user whose mount is in no list of mounts any more. */
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
  // The kernel reuses the device number of an old mount.
  const server = await askServer(mount, ANSWER_MS)
  return typeof server !== 'string' && server.pid !== pid
}

function stillHeld({ message, context, holders }: ImageInUse, who: string): ImageInUse {
  return new ImageInUse(message, holders, {
    ...context,
    hint: `it was unmounted, but programs still use it, or its storage hangs; end those that use it, or ${who} itself`,
  })
}

/** Returns `error`; or, if it is about an image that this user has mounted, an error that says where. */
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
    // A read-only mount is no help to a user who wants to write.
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

/** Throws AlreadyMounted if this user has mounted `image` on `mountpoint`. */
export async function checkNotMounted(image: string, mountpoint: string): Promise<void> {
  const mount = findMount(mountpoint)
  if (!mount || mount.type !== FS_TYPE || ownerOf(mount) !== process.getuid?.()) return
  if (!(await placeOf(mount, image))) return
  throw new AlreadyMounted(
    `${mountpoint}: ${image} is mounted there already; unmount it with vimgfs umount ${mountpoint}, or use it as it is`,
  )
}

const ANSWER_MS = 2_000

/** Returns the status of the server of `mount`, if it serves `image`. */
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
