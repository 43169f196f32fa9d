/**
 * Holds file systems frozen for a command. A process of its own does it, which thaws them when the command's pipe closes: so
 * they are thawed also if the command is killed. If that process is killed, the command thaws.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import fs from 'node:fs'
import readline from 'node:readline'
import type { Readable, Writable } from 'node:stream'
import { inWords, MountError } from '../errors.js'
import { thaw } from '../io/freezing.js'
import { linkOf, list, textOf } from '../io/processes.js'
import { listMounts } from '../io/mountinfo.js'
import type { StandingMount } from './standing-on.js'

/** The command of vimgfs that is the guard; see cli/hold-frozen.ts. */
export const GUARD_COMMAND = 'hold-frozen'

/** The guard's answer: the places of those that it has frozen, and why one of them could not be. */
export interface GuardAnswer {
  readonly frozen?: readonly number[]
  readonly error?: string
}

export class Freezer {
  private constructor(
    private readonly guard: ChildProcess,
    private readonly mounts: readonly Opened[],
    private readonly places: readonly number[],
  ) {}

  /** Freezes all of `mounts`, or none. Throws MountError. */
  static async freeze(mounts: readonly StandingMount[]): Promise<Freezer> {
    const opened = openAll(mounts)
    const script = process.argv[1] as string
    const guard = spawn(process.execPath, [script, GUARD_COMMAND], {
      cwd: '/',
      // A signal from the terminal ends the command, not the guard.
      detached: true,
      stdio: ['pipe', 'pipe', 'ignore'],
    })
    const { stdin, stdout } = guard as unknown as { stdin: Writable; stdout: Readable }
    stdin.on('error', () => {})
    stdin.write(`${JSON.stringify(mounts)}\n`)
    const { frozen = [], error } = await answerOf(stdout)
    const freezer = new Freezer(guard, opened, frozen)
    if (error === undefined) return freezer
    await freezer.thaw()
    throw new MountError(error)
  }

  /** The mounts that were frozen here. The others were frozen before, and stay so. */
  get frozen(): StandingMount[] {
    return this.places.flatMap(place => this.mounts[place]?.mount ?? [])
  }

  /** Thaws what was frozen here. Never throws. */
  async thaw(): Promise<void> {
    const { guard, mounts, places } = this
    const isRunning = guard.exitCode === null && guard.signalCode === null
    const exit = isRunning ? once(guard, 'exit') : undefined
    guard.stdin?.end()
    await exit
    // The guard has done it, unless it was killed.
    if (guard.exitCode !== 0) for (const place of places) thaw(mounts[place]?.fd ?? -1)
    for (const { fd } of mounts) fs.closeSync(fd)
  }
}

interface Opened {
  readonly mount: StandingMount
  readonly fd: number
}

/** Throws MountError. */
function openAll(mounts: readonly StandingMount[]): Opened[] {
  const opened: Opened[] = []
  try {
    for (const mount of mounts) opened.push({ mount, fd: openMount(mount) })
    return opened
  } catch (error) {
    for (const { fd } of opened) fs.closeSync(fd)
    throw error
  }
}

/** Opens the root of a mount. Throws MountError. */
export function openMount({ path, mountpoint, id }: StandingMount): number {
  let fd: number
  try {
    fd = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_DIRECTORY)
  } catch (error) {
    throw new MountError(`${mountpoint} cannot be opened: ${inWords(error)}`)
  }
  // Another file system may be mounted over it.
  if (path !== mountpoint || mountOf('self', String(fd)) === id) return fd
  fs.closeSync(fd)
  throw new MountError(`${mountpoint}: another file system is mounted over it; unmount that first`)
}

async function answerOf(stdout: Readable): Promise<GuardAnswer> {
  for await (const line of readline.createInterface({ input: stdout })) {
    return JSON.parse(line) as GuardAnswer
  }
  return {}
}

/**
 * Returns which files process `pid` has open that lie on one of `mounts`, by their paths: if it wrote to one of them while they
 * are frozen, it would wait, and they would stay frozen.
 */
export function filesOn(pid: number | 'self', mounts: readonly StandingMount[]): string[] {
  const devices = new Set(mounts.map(({ device }) => device))
  const ids = new Set(
    listMounts(pid)
      .filter(({ device }) => devices.has(device))
      .map(({ id }) => id),
  )
  return list(`/proc/${pid}/fd`).flatMap(fd => {
    const id = mountOf(pid, fd)
    return id !== undefined && ids.has(id) ? [linkOf(`/proc/${pid}/fd/${fd}`) ?? 'a file'] : []
  })
}

/** Returns the id of the mount on which a descriptor's file lies (proc_pid_fdinfo(5)). */
const mountOf = (pid: number | 'self', fd: string): string | undefined =>
  /^mnt_id:\s*(\d+)$/m.exec(textOf(`/proc/${pid}/fdinfo/${fd}`) ?? '')?.[1]
