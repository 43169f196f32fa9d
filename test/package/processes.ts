/** What the tests of this folder need around the processes that they start. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { accessSync, constants, existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'

export const ROOT = fileURLToPath(new URL('../..', import.meta.url))
export const SAMPLE = join(ROOT, 'samples/disk.qcow2')
/** Only ends what hangs. */
const PATIENCE_MS = 180_000

/** Why nothing can be mounted here, as tap's `skip` takes it. Root and CI find out by trying. */
export function cannotMount(): string | false {
  if (process.env.CI === 'true' || process.getuid!() === 0) return false
  if (!existsSync('/usr/bin/fusermount3')) return 'fusermount3 is missing'
  try {
    accessSync('/dev/fuse', constants.R_OK | constants.W_OK)
    return false
  } catch {
    return '/dev/fuse is closed to this user'
  }
}

export class Watched {
  readonly child: ChildProcess
  /** Its exit code, or what killed it. */
  readonly end: Promise<number | NodeJS.Signals>
  output = ''

  constructor(command: string, args: string[], cwd: string, env: NodeJS.ProcessEnv = {}) {
    // Without what the npm and the tap that run this test have put in.
    const own = Object.entries(process.env).filter(([name]) => !/^(npm_|TAP|INIT_CWD)/.test(name))
    this.child = spawn(command, args, {
      cwd,
      env: { ...Object.fromEntries(own), ...env },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    const add = (data: Buffer) => {
      this.output += data
    }
    this.child.stdout?.on('data', add)
    this.child.stderr?.on('data', add)
    this.end = once(this.child, 'exit').then(([code, signal]) => code ?? signal)
  }

  async says(text: string): Promise<void> {
    const ended = this.end.then(() => true)
    for (let waited = 0; !this.output.includes(text); waited += 20) {
      const isOver = waited > PATIENCE_MS || (await Promise.race([ended, sleep(20)]))
      if (isOver && !this.output.includes(text)) throw new Error(`no '${text}' in: ${this.output}`)
    }
  }
}

/** Runs a command that must succeed; returns all that it printed. */
export async function run(
  command: string,
  args: string[],
  cwd: string,
  env?: NodeJS.ProcessEnv,
): Promise<string> {
  const watched = new Watched(command, args, cwd, env)
  const end = await watched.end
  if (end !== 0) throw new Error(`${command} ${args.join(' ')}: ${end}\n${watched.output}`)
  return watched.output
}

export function scratchFolder(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'vimgfs-test-'))
  t.teardown(() => {
    if (!hasMount(folder)) rmSync(folder, { recursive: true })
  })
  return folder
}

/** Whether a mount lies in this folder or below. */
export function hasMount(folder: string): boolean {
  return readFileSync('/proc/self/mountinfo', 'utf8').includes(` ${folder}`)
}
