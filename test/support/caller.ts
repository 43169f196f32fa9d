/**
 * Processes that make system calls for tests (calls.mjs). Starting one takes longer than most calls, so they are kept for
 * later calls by the same user in the same mount namespace.
 *
 *  (1) A call that hangs ends with its process, as a command does, and hangs no other call.
 *  (2) Between calls a process has no file open, so it keeps no mount busy. It ends with this process at the latest.
 */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { once } from 'node:events'
import { createInterface } from 'node:readline'
import type { Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import { commandEnvironment, endIfHanging } from './run.js'

const CALLS = fileURLToPath(new URL('calls.mjs', import.meta.url))

/** Those that wait for a call, by the words that start them. */
const idle = new Map<string, Caller[]>()
const all = new Set<Caller>()

/**
 * Runs a function of calls.mjs; resolves to its result.
 * @param prefix the words before the command, which say where it runs
 */
export async function callIn(
  prefix: readonly string[],
  env: NodeJS.ProcessEnv | undefined,
  name: string,
  args: readonly (string | number)[],
): Promise<any> {
  const place = JSON.stringify([prefix, env])
  const waiting = idle.get(place) ?? []
  idle.set(place, waiting)
  const caller = waiting.pop() ?? new Caller(prefix, env)
  const result = await caller.call(name, args)
  if (caller.isUsable) waiting.push(caller)
  return result
}

/** Ends the processes whose prefix has `word`: those of a mount namespace, which lasts as long as they do. */
export async function endCallers(word: string): Promise<void> {
  for (const callers of idle.values()) {
    for (const caller of callers.filter(each => each.prefix.includes(word))) {
      callers.splice(callers.indexOf(caller), 1)
    }
  }
  const ended = [...all].filter(each => each.prefix.includes(word))
  await Promise.all(ended.map(caller => caller.end()))
}

class Caller {
  isUsable = true
  private readonly child: ChildProcessWithoutNullStreams
  private readonly lines: AsyncIterator<string>
  private readonly ended: Promise<unknown>
  private errors = ''

  constructor(
    readonly prefix: readonly string[],
    env: NodeJS.ProcessEnv | undefined,
  ) {
    const [command, ...words] = [...prefix, process.execPath, CALLS]
    this.child = spawn(command as string, words, { cwd: '/', env: commandEnvironment(env) })
    all.add(this)
    this.lines = createInterface({ input: this.child.stdout })[Symbol.asyncIterator]()
    this.child.stdin.on('error', () => {})
    this.child.stderr.on('data', text => {
      this.errors += text
    })
    this.ended = once(this.child, 'close').catch(() => {})
    void this.ended.then(() => {
      this.isUsable = false
      all.delete(this)
    })
    this.keepsProcess(false)
  }

  async call(name: string, args: readonly (string | number)[]): Promise<any> {
    const stopWatching = endIfHanging(this.child)
    this.keepsProcess(true)
    this.child.stdin.write(`${JSON.stringify([name, args])}\n`)
    const { value } = await this.lines.next()
    this.keepsProcess(false)
    const how = stopWatching()
    if (value === undefined) {
      await this.ended
      throw new Error(`${name}(${args.join(', ')}): ${how}${this.errors}`)
    }
    const { result, error } = JSON.parse(value)
    if (error !== undefined) throw new Error(`${name}(${args.join(', ')}): ${error}`)
    return result
  }

  async end(): Promise<void> {
    this.keepsProcess(true)
    this.child.kill('SIGKILL')
    await this.ended
  }

  /** Says whether this process goes on while `child` does. */
  private keepsProcess(does: boolean): void {
    const { child } = this
    const { stdin, stdout, stderr } = child as unknown as Record<string, Socket>
    for (const each of [child, stdin, stdout, stderr]) if (does) each?.ref()
    for (const each of [child, stdin, stdout, stderr]) if (!does) each?.unref()
  }
}
