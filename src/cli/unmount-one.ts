/** Unmounts one mount, and returns when its server has ended. */
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { MountError, printable } from '../errors.js'
import { unmountFuse } from '../fs/mounting/mount.js'
import { otherPlaces } from '../fs/mounting/mount-holders.js'
import type { MountInfo } from '../io/mountinfo.js'
import {
  askServer,
  findServer,
  FLUSH_TIMEOUT_MS,
  runAsOwner,
  type RunningServer,
  type ServerProcess,
} from '../fs/mounting/running-server.js'
import { isEndingServer, isStopped, startOf } from '../io/processes.js'
import { complain } from './output.js'

/** After unmounting, a server first saves what was written. On a busy disk that may take minutes. */
const END_TIMEOUT_MS = 300_000
/** A stopped server will not end by itself. */
const STOPPED_TIMEOUT_MS = 3_000
/** A busy server answers late. The short timeout is for a stopped server, which does not answer, and for --lazy. */
const STATUS_TIMEOUT_MS = 8_000
const SHORT_TIMEOUT_MS = 2_000
/**
 * How long to wait for another mount namespace to give up the mount. A program that makes a namespace gets a copy of every
 * mount, and most programs unmount these at once.
 */
const GRACE_MS = 2_000
const GRACE_STEP_MS = 100
/** After this time a line tells the user what the command waits for. */
const NOTICE_MS = 3_000

/** Unmounts `mount`. Throws MountError. */
export async function unmountOne(mount: MountInfo, isLazy: boolean): Promise<void> {
  const { mountpoint } = mount
  const found = findServer(mount)
  const isShort = isLazy || (found !== undefined && isStopped(found.pid))
  const answer = await withNotice(
    () => `waiting for an answer from ${serverName(found)}`,
    mountpoint,
    askServer(mount, isShort ? SHORT_TIMEOUT_MS : STATUS_TIMEOUT_MS),
  )
  const server = typeof answer === 'string' ? undefined : answer
  const isDead = answer === 'dead'
  if (!isLazy && !isDead) await refuseOtherPlaces(mount)
  // A read-only mount cannot lose data.
  if (!isLazy && answer === 'silent' && !isReadOnly(mount)) throw notAnswering(mount, found)
  let failure = server?.failure ?? null
  // Flush first: after unmounting the server could not report a failure any more.
  if (server && !server.readOnly && !isLazy) failure = await flush(mount, server)
  unmountFuse(mount, isLazy)
  const ending = server ?? found
  if (ending && !isLazy && !isDead) await endOf(ending, mount)
  if (failure !== null) {
    throw new MountError(
      `${mountpoint}: it is unmounted, but not all that was written could be kept: ${failure}; look at the image with vimgfs check`,
    )
  }
  if (server && !server.readOnly && server.removed) {
    throw new MountError(
      `${mountpoint}: it is unmounted, but ${server.image}, or a part of it, was removed or replaced while it was mounted: what was written to that is gone`,
    )
  }
}

/** Returns the result of `work`. If it takes long, a line on standard error says what the command waits for. */
async function withNotice<T>(what: () => string, mountpoint: string, work: Promise<T>): Promise<T> {
  const timer = setTimeout(() => notice(mountpoint, what()), NOTICE_MS)
  try {
    return await work
  } finally {
    clearTimeout(timer)
  }
}

const notice = (mountpoint: string, what: string) =>
  complain(`vimgfs: ${printable(`${mountpoint}: ${what}`)}\n`)

const serverName = (server: ServerProcess | undefined): string =>
  server ? `its server (process ${server.pid})` : 'its server'

/** Reports whether the file system is mounted read-only. */
const isReadOnly = ({ options }: MountInfo): boolean => options.split(',')[0] === 'ro'

function notAnswering({ mountpoint }: MountInfo, server: ServerProcess | undefined): MountError {
  const [what, first] =
    server && isStopped(server.pid)
      ? ['is stopped', `continue it with kill -CONT ${server.pid}`]
      : ['does not answer', 'wait until its storage answers']
  const kill = server ? `kill -9 ${server.pid}` : 'kill -9'
  return new MountError(
    `${mountpoint}: ${serverName(server)} ${what}, so it stays mounted: what was written may not be in the image yet; ${first}, or give that up with ${kill}, and try again`,
  )
}

/** Throws if another place still has the mount after GRACE_MS: a server goes on while its mount is anywhere. */
async function refuseOtherPlaces(mount: MountInfo): Promise<void> {
  const deadline = Date.now() + GRACE_MS
  const findPlace = () => otherPlaces(mount, mount.id).find(({ stays }) => stays)
  let place = findPlace()
  while (place && Date.now() < deadline) {
    await sleep(GRACE_STEP_MS)
    place = findPlace()
  }
  if (!place) return
  throw new MountError(
    `${mount.mountpoint}: it stays mounted here, because it is mounted elsewhere, too: ${place.who}, or take it away here alone with vimgfs umount --lazy ${mount.mountpoint}`,
  )
}

/**
 * Makes durable what was written. Throws MountError if that failed and may succeed later. Returns the reason if it never
 * will, else null.
 */
async function flush(mount: MountInfo, server: RunningServer): Promise<string | null> {
  const file = path.join(mount.mountpoint, server.disk)
  const { code, stderr } = await withNotice(
    () => `waiting for ${serverName(server)} to save what was written`,
    mount.mountpoint,
    runAsOwner(mount, 'sync', ['--data', file], FLUSH_TIMEOUT_MS),
  )
  if (code === 0) return null
  const why =
    code === 'timeout'
      ? `${serverName(server)} has not done it in ${FLUSH_TIMEOUT_MS / 1000} s`
      : stderr.trim().split(': ').at(-1) || `sync ended with ${code}`
  const now = await askServer(mount, STATUS_TIMEOUT_MS)
  if (typeof now !== 'string' && now.failure) return now.failure
  throw new MountError(
    `${mount.mountpoint}: what was written could not be saved (${why}), so it stays mounted; put that right and try again, or give it up with vimgfs umount --lazy ${mount.mountpoint}`,
  )
}

async function endOf(server: ServerProcess, mount: MountInfo): Promise<void> {
  const { mountpoint } = mount
  const { pid, startTicks } = server
  const started = Date.now()
  let lookAt = GRACE_MS
  let hasSaid = false
  while (startOf(pid) === startTicks) {
    const waited = Date.now() - started
    if (waited > lookAt && !isEndingServer(pid)) {
      lookAt *= 2
      const [place] = otherPlaces(mount)
      if (place) throw goesOn(`goes on: ${place.who}`)
    }
    if (waited > NOTICE_MS && !hasSaid) {
      hasSaid = true
      notice(mountpoint, `it is unmounted; waiting for ${serverName(server)} to end`)
    }
    if (waited > STOPPED_TIMEOUT_MS && isStopped(pid)) {
      throw goesOn(`is stopped; continue it with kill -CONT ${pid}`)
    }
    if (waited > END_TIMEOUT_MS) throw goesOn(`has not ended in ${END_TIMEOUT_MS / 1000} s`)
    await sleep(5)
  }

  function goesOn(how: string): MountError {
    return new MountError(`${mountpoint}: it is unmounted here, but ${serverName(server)} ${how}`)
  }
}
