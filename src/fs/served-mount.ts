/** Bringing a mount up, and taking it away, whatever the transport. */
import fs from 'node:fs'
import { MountError } from '../errors.js'
import { exitNow } from '../io/libc.js'
import { type MountInfo, mountAt } from '../io/mountinfo.js'
import { nameServer } from '../io/processes.js'
import type { Logger } from '../log.js'
import { unmountFuse } from './mounting/mount.js'
import { MAX_REQUEST_BYTES } from './protocol/protocol.js'
import {
  DESCRIPTORS_A_WORKER,
  DESCRIPTORS_TO_SERVE,
  requireDescriptors,
} from './mounting/rlimits.js'
import type { Session } from './session.js'

/** The kernel's readahead for sequential readers; more than a request gained nothing. */
const READ_AHEAD_BYTES = MAX_REQUEST_BYTES
const ANSWER_TIMEOUT_MS = 20_000
/** Mounts, and resolves when the mount answers. Throws MountError; then nothing is mounted, and `session` has ended. */
export async function bringUp(
  session: Session,
  mountpoint: string,
  threads: number,
  logger: Logger,
): Promise<MountInfo | undefined> {
  let mount: MountInfo | undefined
  try {
    await session.prepare()
    requireDescriptors(DESCRIPTORS_TO_SERVE + threads * DESCRIPTORS_A_WORKER)
    mount = await session.mount()
    if (mount) nameServer(mount.device)
    await firstAnswer(mountpoint, session.finished)
    // The kernel lowers it again as it reads the answer to INIT, and libfuse tells of that beforehand.
    if (mount) raiseReadAhead(mount, logger)
    return mount
  } catch (error) {
    if (mount) await session.unmount(mount, true)
    await session.end()
    throw error
  }
}

/** Root may; for others the kernel's 128 KiB stay. */
function raiseReadAhead(mount: MountInfo, logger: Logger): void {
  try {
    fs.writeFileSync(
      `/sys/class/bdi/${mount.device}/read_ahead_kb`,
      String(READ_AHEAD_BYTES / 1024),
    )
  } catch (error) {
    logger.debug({ reason: (error as Error).message }, 'the readahead stays as it is')
  }
}

/** Asks the mount for its folder, off this thread, so that a server that fails to answer is noticed. */
async function firstAnswer(mountpoint: string, finished: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new MountError(`${mountpoint}: the mount does not answer`)),
      ANSWER_TIMEOUT_MS,
    )
  })
  const ended = finished.then(() => {
    throw new MountError(`${mountpoint}: the server ended before it answered`)
  })
  // It goes on after the race was won by another, and nobody listens then.
  ended.catch(() => {})
  try {
    await Promise.race([fs.promises.stat(mountpoint), late, ended])
  } finally {
    clearTimeout(timer)
  }
}

/** Unmounts; a mount that is in use is detached, and served to its end. Never throws. */
export async function stopMount(
  session: Session,
  mount: MountInfo | undefined,
  reason: string,
  logger: Logger,
): Promise<void> {
  let current: MountInfo | undefined
  try {
    current = mount && mountAt(mount.mountpoint)
  } catch (error) {
    // No descriptor is left to read the list with, say; whoever asked may ask again.
    logger.error({ reason, why: (error as Error).message }, 'it could not be unmounted')
    return
  }
  // Unmounted already, or something else has been mounted there since.
  if (!current || current.device !== mount?.device) return
  try {
    await session.unmount(current, false)
  } catch (error) {
    logger.warn({ reason, why: (error as Error).message }, 'in use: detached and served to its end')
    try {
      await session.unmount(current, true)
    } catch (failure) {
      logger.error({ why: (failure as Error).message }, 'it could not be unmounted')
    }
  }
}

/**
 * Ends all at once, as kill -9 would: a thread that died while it wrote may have left the shared memory
 * half changed, and what is in the image is sound without it.
 */
export function abandon(mount: MountInfo | undefined, logger: Logger): void {
  logger.fatal('a thread has died while the disk is mounted for writing: giving up at once')
  const current = mount && mountAt(mount.mountpoint)
  try {
    if (current && current.device === mount.device) unmountFuse(current, true)
  } catch (error) {
    logger.error({ why: (error as Error).message }, 'it could not be unmounted')
  }
  exitNow(1)
}
