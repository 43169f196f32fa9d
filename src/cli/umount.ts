/** `vimgfs umount`: unmounts and returns when the server has ended. */
import { setTimeout as sleep } from 'node:timers/promises'
import fs from 'node:fs'
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import path from 'node:path'
import { MountError } from '../errors.js'
import { FS_TYPE, unmountFuse } from '../fs/mount.js'
import { findMount, type MountInfo } from '../fs/mountinfo.js'
import { parse } from './arguments.js'

const OPTIONS = { lazy: { type: 'boolean', short: 'l' } } as const

/** A server that was detached may have long to go; one that was unmounted ends at once. */
const END_TIMEOUT_MS = 30_000
const STATUS_TIMEOUT_MS = 2_000

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
  unmountFuse(mount, values.lazy === true)
  if (server && !values.lazy) await endOf(server, mountpoint)
  return 0
}

interface RunningServer {
  readonly pid: number
  /** The process's start in clock ticks: a number that is used again has another. */
  readonly startTicks: string
}

/**
 * Which process serves the mount, by its own word. Asked in another process: a server that hangs would
 * hang us too; and as the mounting user where that is another, since the mount is closed to root then.
 * Undefined when the server is dead or silent.
 */
async function serverOf(mount: MountInfo): Promise<RunningServer | undefined> {
  const owner = Number(/(?:^|,)user_id=([0-9]+)/.exec(mount.options)?.[1] ?? 0)
  const isOthers = process.geteuid?.() === 0 && owner !== 0
  try {
    const status = path.join(mount.mountpoint, '.vimgfs', 'status.json')
    const { stdout } = await promisify(execFile)('cat', [status], {
      cwd: '/',
      timeout: STATUS_TIMEOUT_MS,
      killSignal: 'SIGKILL',
      ...(isOthers && { uid: owner }),
    })
    const { pid } = JSON.parse(stdout) as { pid: number }
    const startTicks = startOf(pid)
    return startTicks === undefined ? undefined : { pid, startTicks }
  } catch {
    return undefined
  }
}

async function endOf({ pid, startTicks }: RunningServer, mountpoint: string): Promise<void> {
  const deadline = Date.now() + END_TIMEOUT_MS
  while (startOf(pid) === startTicks) {
    if (Date.now() > deadline) {
      throw new MountError(`${mountpoint}: it is unmounted, but its server ${pid} has not ended`)
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
