/** `vimgfs umount`: unmounts and returns when the server has ended. */
import { setTimeout as sleep } from 'node:timers/promises'
import fs from 'node:fs'
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import path from 'node:path'
import { MountError } from '../errors.js'
import { FS_TYPE, unmountFuse } from '../fs/mount.js'
import { findMount, type MountInfo, ownerOf } from '../fs/mountinfo.js'
import { parse } from './arguments.js'

const OPTIONS = { lazy: { type: 'boolean', short: 'l' } } as const

/**
 * A server that was detached may have long to go; one that was unmounted ends when what was written is on
 * the disk, which a busy one may take minutes for.
 */
const END_TIMEOUT_MS = 300_000
const STATUS_TIMEOUT_MS = 2_000
/** Much may be waiting to be written. */
const FLUSH_TIMEOUT_MS = 600_000

export async function run(args: string[]): Promise<number> {
  const { values, positionals } = parse(args, OPTIONS, 'umount', ['MOUNTPOINT'])
  const mountpoint = positionals[0] as string
  const mount = findMount(mountpoint)
  if (!mount) throw new MountError(`${mountpoint}: nothing is mounted there`)
  if (mount.type !== FS_TYPE) {
    throw new MountError(
      `${mountpoint}: ${mount.source} (${mount.type}) is mounted there, not an image by vimgfs; use umount`,
    )
  }
  const server = await serverOf(mount)
  let failure = server?.failure ?? null
  // Afterwards nobody would be there to tell that it failed.
  if (server && !server.readOnly && !values.lazy) failure = await flush(mount, server)
  unmountFuse(mount, values.lazy === true)
  if (server && !values.lazy) await endOf(server, mountpoint)
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
  return 0
}

interface RunningServer {
  readonly pid: number
  /** The process's start in clock ticks: a number that is used again has another. */
  readonly startTicks: string
  readonly readOnly: boolean
  /** Why the disk has become read-only, if it has. */
  readonly failure: string | null
  readonly image: string
  /** Whether a file of the image has been removed since it was mounted. */
  readonly removed: boolean
  /** The name of the disk's file. */
  readonly disk: string
}

/**
 * Has what was written made durable. Throws MountError where that failed and may yet succeed; returns
 * why not where it never will, else null.
 */
async function flush(mount: MountInfo, server: RunningServer): Promise<string | null> {
  let why: string
  try {
    const file = path.join(mount.mountpoint, server.disk)
    await runAsOwner(mount, 'sync', ['--data', file], FLUSH_TIMEOUT_MS)
    return null
  } catch (error) {
    const { stderr = '', message } = error as Error & { stderr?: string }
    why = stderr.trim().split(': ').at(-1) || message
  }
  const now = await serverOf(mount)
  if (now?.failure) return now.failure
  throw new MountError(
    `${mount.mountpoint}: what was written could not be saved (${why}), so it stays mounted; put that right and try again, or give it up with vimgfs umount --lazy ${mount.mountpoint}`,
  )
}

/** Which process serves the mount, by its own word. Undefined when the server is dead or silent. */
async function serverOf(mount: MountInfo): Promise<RunningServer | undefined> {
  try {
    const file = path.join(mount.mountpoint, '.vimgfs', 'status.json')
    const text = await runAsOwner(mount, 'cat', [file], STATUS_TIMEOUT_MS)
    const status = JSON.parse(text) as Omit<RunningServer, 'startTicks'>
    const startTicks = startOf(status.pid)
    return startTicks === undefined ? undefined : { ...status, startTicks }
  } catch {
    return undefined
  }
}

/**
 * What a command prints that touches the mount. In another process, since a server that hangs would
 * hang us too; and as the mounting user where that is another, since the mount is closed to root then.
 */
async function runAsOwner(
  mount: MountInfo,
  command: string,
  args: string[],
  timeout: number,
): Promise<string> {
  const owner = ownerOf(mount)
  const isOthers = process.geteuid?.() === 0 && owner !== 0
  const { stdout } = await promisify(execFile)(command, args, {
    cwd: '/',
    timeout,
    killSignal: 'SIGKILL',
    env: { ...process.env, LC_ALL: 'C' },
    ...(isOthers && { uid: owner }),
  })
  return stdout
}

async function endOf({ pid, startTicks }: RunningServer, mountpoint: string): Promise<void> {
  const deadline = Date.now() + END_TIMEOUT_MS
  while (startOf(pid) === startTicks) {
    if (Date.now() > deadline) {
      throw new MountError(
        `${mountpoint}: it is unmounted here, but its server ${pid} has not ended: another mount namespace (a container's, a service's) may still have it; grep -l ${mountpoint} /proc/*/mountinfo shows whose`,
      )
    }
    await sleep(5)
  }
}

/** The start of process `pid` in clock ticks (proc(5), stat, field 22); undefined when it has ended. */
function startOf(pid: number): string | undefined {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, 'utf8')
    // The name in field 2 may hold anything, also spaces and parentheses.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    // A zombie has ended once its last thread has: until then threads may hold the image.
    const hasEnded = fields[0] === 'Z' && fs.readdirSync(`/proc/${pid}/task`).length === 1
    return hasEnded ? undefined : fields[19]
  } catch {
    return undefined
  }
}
