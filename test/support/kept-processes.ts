/**
 * Processes that tests keep for later work by the same user in the same mount namespace, because starting Node takes longer
 * than most of that work.
 *
 *  (1) Work that hangs ends with its process, as a command does, and hangs nothing else.
 *  (2) Between two pieces of work a process has no file open, so it keeps no mount busy. It ends with this process at the
 *      latest.
 */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { once } from 'node:events'
import type { Socket } from 'node:net'
import { commandEnvironment } from './run.js'

const all = new Set<KeptProcess>()

/** Ends the processes whose prefix has `word`: those of a mount namespace, which lasts as long as they do. */
export async function endKept(word: string): Promise<void> {
  const found = [...all].filter(each => each.prefix.includes(word))
  await Promise.all(found.map(each => each.end()))
}

/** One process; it runs while it is at work, and does not keep this process from ending. */
export class KeptProcess {
  isUsable = true
  protected readonly child: ChildProcessWithoutNullStreams
  /** Resolves to its exit code and signal once it has ended. */
  protected readonly ended: Promise<[number | null, string | null]>

  /** @param prefix the words before the command, which say where it runs */
  constructor(
    readonly prefix: readonly string[],
    env: NodeJS.ProcessEnv | undefined,
    script: string,
    cwd?: string,
  ) {
    const [command, ...words] = [...prefix, process.execPath, script]
    this.child = spawn(command as string, words, { cwd, env: commandEnvironment(env) })
    all.add(this)
    this.child.stdin.on('error', () => {})
    this.ended = once(this.child, 'close').catch(() => [null, null]) as typeof this.ended
    void this.ended.then(() => {
      this.isUsable = false
      all.delete(this)
    })
    this.keepsProcess(false)
  }

  async end(): Promise<void> {
    this.isUsable = false
    this.keepsProcess(true)
    this.child.kill('SIGKILL')
    await this.ended
  }

  /** Says whether this process goes on while `child` does. */
  protected keepsProcess(does: boolean): void {
    const { child } = this
    const { stdin, stdout, stderr } = child as unknown as Record<string, Socket>
    for (const each of [child, stdin, stdout, stderr]) if (does) each?.ref()
    for (const each of [child, stdin, stdout, stderr]) if (!does) each?.unref()
  }
}

/** Processes of one kind. */
export class Pool<T extends KeptProcess> {
  /** Those that wait for work, by where they run. */
  private readonly idle = new Map<string, T[]>()

  constructor(
    private readonly start: (prefix: readonly string[], env: NodeJS.ProcessEnv | undefined) => T,
  ) {}

  /** Does `work` in a process that runs there, and keeps it. */
  async use<R>(
    prefix: readonly string[],
    env: NodeJS.ProcessEnv | undefined,
    work: (one: T) => Promise<R>,
  ): Promise<R> {
    const place = JSON.stringify([prefix, env])
    const waiting = this.idle.get(place) ?? []
    this.idle.set(place, waiting)
    let one = waiting.pop()
    while (one && !one.isUsable) one = waiting.pop()
    one ??= this.start(prefix, env)
    try {
      return await work(one)
    } finally {
      if (one.isUsable) waiting.push(one)
    }
  }
}
