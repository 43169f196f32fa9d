/** Runs external commands, makes temporary folders, and skips tests that lack a command. */
import { accessSync, constants, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { delimiter, join } from 'node:path'
import type { Test } from 'tap'
import { markedProcesses, ownMark, Progress } from './activity.js'
import { type LightCommand, runLight } from './light-spawn.js'

export interface RunOptions {
  readonly cwd?: string
  readonly env?: NodeJS.ProcessEnv
  /** The command's standard input. */
  readonly input?: string | Buffer
}

export interface Finished {
  /** -1 when a signal ended it, or when it could not be started. */
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

/** Less than a process of tests may be without progress: so the test can say which command it was. */
const HANG_SECONDS = 200
const LOOK_MS = 5000

// An ordinary user's PATH lacks the folders of losetup and mke2fs.
const PATH = `${process.env.PATH}${delimiter}/usr/sbin${delimiter}/sbin`

/** Runs a command to its end, however it ends. One that hangs is killed, and the run has failed. */
export async function attempt(
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<Finished> {
  const { cwd, env, input } = options
  let child: LightCommand
  try {
    child = runLight(command, args, { cwd, env: commandEnvironment(env), input })
  } catch (error) {
    return { code: -1, stdout: '', stderr: `${(error as Error).message}\n` }
  }
  const stopWatching = endIfHanging(child)
  const { code = -1, signal, stdout, stderr } = await child.ended
  const how = stopWatching()
  const reason = code === -1 ? `${command} ${args.join(' ')}: signal ${signal}${how}\n` : ''
  return { code, stdout: String(stdout), stderr: `${reason}${stderr}` }
}

/** Returns the environment of commands, with `more`. */
export function commandEnvironment(more: NodeJS.ProcessEnv | undefined): NodeJS.ProcessEnv {
  // Sets the mark that they inherit.
  ownMark()
  return { ...process.env, LC_ALL: 'C', PATH, ...more }
}

/**
 * Kills `child` once it hangs. What it waits for may be another process of this test: while one of them does anything,
 * none of them hangs. Returns a function that ends the watch, and says whether it has killed the process.
 */
export function endIfHanging(child: { kill(signal: NodeJS.Signals): void }): () => string {
  let hangs = false
  let progress: Progress | undefined
  const timer = setInterval(() => {
    const pids = markedProcesses(ownMark())
    progress ??= new Progress(pids)
    progress.look(pids)
    hangs = progress.quiet > HANG_SECONDS
    if (hangs) child.kill('SIGKILL')
  }, LOOK_MS)
  return () => {
    clearInterval(timer)
    return hangs ? ` has made no progress for ${HANG_SECONDS} s` : ''
  }
}

/** Runs a command that must succeed; resolves to what it printed. */
export async function run(
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  const { code, stdout, stderr } = await attempt(command, args, options)
  if (code !== 0) {
    const line = `${command} ${args.join(' ')}`.slice(0, 500)
    throw new Error(`${line}: exit ${code}\n${stderr.slice(-2000)}${stdout.slice(-2000)}`)
  }
  return stdout
}

/** Makes a folder that is removed when the test ends. */
export function tempFolder(t: Test): string {
  const folder = mkdtempSync(join(tmpdir(), 'vimgfs-test-'))
  t.teardown(() => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/**
 * Returns options for a test that needs these commands. The test is skipped if one is missing; but in CI, which has them all,
 * it runs and fails.
 */
export function needs(...commands: string[]): { skip?: string } {
  const missing = commands.filter(command => !isOnPath(command))
  return unless(missing.length === 0, `needs ${missing.join(', ')}`)
}

/** Returns options for a test that only root can run. */
export const needsRoot = (): { skip?: string } => unless(process.getuid?.() === 0, 'needs root')

const unless = (isMet: boolean, skip: string): { skip?: string } =>
  isMet || process.env.CI === 'true' ? {} : { skip }

function isOnPath(command: string): boolean {
  return PATH.split(delimiter).some(folder => {
    try {
      accessSync(join(folder, command), constants.X_OK)
      return true
    } catch {
      return false
    }
  })
}
