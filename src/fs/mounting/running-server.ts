/** Asks the server of a mount, from another process. */
import { once } from 'node:events'
import path from 'node:path'
import { text } from 'node:stream/consumers'
import { serverOfDevice, startOf } from '../../io/processes.js'
import { type MountInfo, ownerOf, groupOf } from '../../io/mountinfo.js'

/** How long a server may take to save what was written: there may be much. */
export const FLUSH_TIMEOUT_MS = 600_000

export interface ServerProcess {
  readonly pid: number
  /** The result of startOf. */
  readonly startTicks: string
}

export interface RunningServer extends ServerProcess {
  readonly readOnly: boolean
  /** Why the disk has become read-only; null if it has not. */
  readonly failure: string | null
  readonly image: string
  /** Whether a file of the image has been removed since it was mounted. */
  readonly removed: boolean
  /** The name of the disk's file. */
  readonly disk: string
  /** The path of the socket for commands; null if there is none, and undefined in older versions. */
  readonly socket?: string | null
}

/**
 * Returns the status of the server of `mount` from its status.json; 'silent' if it does not answer within `timeoutMs`, 'dead'
 * if it has ended, and 'unknown' if this user may not ask it.
 */
export async function askServer(
  mount: MountInfo,
  timeoutMs: number,
): Promise<RunningServer | 'silent' | 'dead' | 'unknown'> {
  const file = path.join(mount.mountpoint, '.vimgfs', 'status.json')
  const { code, stdout, stderr } = await runAsOwner(mount, 'cat', [file], timeoutMs)
  if (code === 'timeout') return 'silent'
  if (/not connected|connection abort/.test(stderr)) return 'dead'
  if (code !== 0) return 'unknown'
  try {
    const status = JSON.parse(stdout) as Omit<RunningServer, 'startTicks'>
    const startTicks = startOf(status.pid)
    return startTicks === undefined ? 'unknown' : { ...status, startTicks }
  } catch {
    return 'unknown'
  }
}

/** Returns the process that serves `mount`, also if it does not answer; undefined if it cannot be found. */
export function findServer(mount: MountInfo): ServerProcess | undefined {
  const pid = serverOfDevice(mount.device, ownerOf(mount))
  const startTicks = pid && startOf(pid)
  return startTicks ? { pid: pid as number, startTicks } : undefined
}

export interface Ran {
  readonly code: number | 'timeout'
  readonly stdout: string
  readonly stderr: string
}

/**
 * Runs a command that touches `mount`. It runs in another process, because a server that hangs would hang this one, and as
 * the mounting user, because the mount may be closed to root. A process that waits for a server cannot always be killed, so
 * a command that takes too long is left behind.
 */
export async function runAsOwner(
  mount: MountInfo,
  command: string,
  args: readonly string[],
  timeoutMs: number,
): Promise<Ran> {
  const owner = ownerOf(mount)
  const isOthers = process.geteuid?.() === 0 && owner !== 0
  const { spawn } = await import('node:child_process')
  const child = spawn(command, args, {
    cwd: '/',
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, LC_ALL: 'C' },
    // The kernel admits only a process that has both.
    ...(isOthers && { uid: owner, gid: groupOf(mount) }),
  })
  const ended = Promise.all([
    once(child, 'exit').then(([code]) => (code as number | null) ?? -1),
    text(child.stdout),
    text(child.stderr),
  ]).then(
    ([code, stdout, stderr]) => ({ code, stdout, stderr }),
    (error: Error) => ({ code: -1, stdout: '', stderr: error.message }),
  )
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<Ran>(resolve => {
    timer = setTimeout(() => resolve({ code: 'timeout', stdout: '', stderr: '' }), timeoutMs)
  })
  const result = await Promise.race([ended, late])
  clearTimeout(timer)
  if (result.code === 'timeout') {
    child.kill('SIGKILL')
    child.stdout.destroy()
    child.stderr.destroy()
    child.unref()
  }
  return result
}
