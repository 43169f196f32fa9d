/**
 * What the processes of a test do: the sign by which one that hangs is told from one that is slow.
 *
 * A process belongs to a test file if its environment has that file's mark, so servers that run on in the
 * background are found, too. Only used for judging and for cleaning up; no test's result depends on it.
 */
import { randomUUID } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'

/** The variable that scripts/test.mjs sets for each test file, and that all its processes inherit. */
export const MARK = 'VIMGFS_TEST_MARK'

/** The mark of this process's children; made here where nobody else has made one. */
export function ownMark(): string {
  process.env[MARK] ??= randomUUID()
  return process.env[MARK]
}

/** Fields of /proc/PID/stat after the name, counted from the state (proc_pid_stat(5)). */
const STATE = 0
const CPU_TICKS = [11, 12, 13, 14]
const TICKS_PER_SECOND = 100

export interface Activity {
  /** Processor time of all processes that live, and of the children that they have waited for. */
  readonly cpuSeconds: number
  /** What they have read from storage and written to it. */
  readonly storageBytes: number
  /** Pages that the whole machine has written, where one of the processes waits for storage; else 0. */
  readonly awaitedPages: number
}

/** The processes with this mark, this one left out. */
export function markedProcesses(mark: string): number[] {
  return readdirSync('/proc')
    .filter(name => /^[0-9]+$/.test(name))
    .map(Number)
    .filter(pid => pid !== process.pid && environmentOf(pid).includes(`${MARK}=${mark}`))
}

function environmentOf(pid: number): string[] {
  // Processes of other users cannot be read, and are not ours to end either.
  return textOf(`/proc/${pid}/environ`).split('\0')
}

export function activityOf(pids: readonly number[]): Activity {
  let ticks = 0
  let storageBytes = 0
  let waits = false
  for (const pid of pids) {
    const stat = textOf(`/proc/${pid}/stat`)
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    for (const field of CPU_TICKS) ticks += Number(fields[field] ?? 0)
    const io = textOf(`/proc/${pid}/io`)
    for (const [, bytes] of io.matchAll(/^(?:read|write)_bytes: (\d+)$/gm)) {
      storageBytes += Number(bytes)
    }
    // A process that waits for a FUSE server is in this state, too.
    waits ||= fields[STATE] === 'D' && !/fuse|request_wait/.test(textOf(`/proc/${pid}/wchan`))
  }
  const written = /^nr_written (\d+)$/m.exec(textOf('/proc/vmstat'))?.[1]
  const awaitedPages = waits ? Number(written ?? 0) : 0
  return { cpuSeconds: ticks / TICKS_PER_SECOND, storageBytes, awaitedPages }
}

/** The least share of a processor that counts as progress: what only polls uses less. */
const LEAST_SHARE = 0.01

/** Tells for how long processes have done nothing. All its figures are seconds. */
export class Progress {
  private seen: Activity
  private quietSince = performance.now()
  private usedSinceMove = 0
  private usedSinceSign = 0

  constructor(pids: readonly number[]) {
    this.seen = activityOf(pids)
  }

  /** Looks at the processes; call it every few seconds. */
  look(pids: readonly number[]): void {
    const [before, now] = [this.seen, activityOf(pids)]
    this.seen = now
    // A process that has ended takes its figures along.
    const used = Math.max(0, now.cpuSeconds - before.cpuSeconds)
    this.usedSinceMove += used
    this.usedSinceSign += used
    const writes = before.awaitedPages > 0 && now.awaitedPages > before.awaitedPages
    const computes = this.usedSinceMove > LEAST_SHARE * this.quiet
    if (computes || writes || now.storageBytes > before.storageBytes) this.move()
  }

  /** The processes have shown what they have done, by a line of output. */
  sign(): void {
    this.usedSinceSign = 0
    this.move()
  }

  /** For how long there has been no output, no processor time and no input or output of storage. */
  get quiet(): number {
    return (performance.now() - this.quietSince) / 1000
  }

  /** How much processor time has gone by since the last sign. */
  get busy(): number {
    return this.usedSinceSign
  }

  private move(): void {
    this.quietSince = performance.now()
    this.usedSinceMove = 0
  }
}

/** What a process was started as, for messages. */
export function commandOf(pid: number): string {
  const words = textOf(`/proc/${pid}/cmdline`).split('\0').join(' ').trim()
  return words.length > 200 ? `${words.slice(0, 200)}…` : words
}

/** The mount points in `folder` and below that a process sees, the latest first. */
export function mountsBelow(folder: string, pid: number | 'self' = 'self'): string[] {
  const lines = textOf(`/proc/${pid}/mountinfo`).trimEnd().split('\n')
  const points = lines.map(line => unescaped(line.split(' ')[4] ?? ''))
  return points.filter(point => point.startsWith(`${folder}/`)).reverse()
}

/** The loop devices over files in `folder` and below, as root sees them. */
export function loopsBelow(folder: string): string[] {
  const names = readdirSync('/sys/block').filter(name => /^loop\d+$/.test(name))
  return names
    .filter(name => textOf(`/sys/block/${name}/loop/backing_file`).startsWith(`${folder}/`))
    .map(name => `/dev/${name}`)
}

/** mountinfo writes white space and backslashes by their octal numbers. */
const unescaped = (text: string): string =>
  text.replace(/\\([0-7]{3})/g, (_, digits) => String.fromCharCode(Number.parseInt(digits, 8)))

function textOf(path: string): string {
  try {
    return readFileSync(path, 'latin1')
  } catch {
    return ''
  }
}
