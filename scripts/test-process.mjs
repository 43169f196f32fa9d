/**
 * A process that runs test files, and everything that it starts.
 *
 *  (1) It is ended only if it hangs: for minutes nothing of it prints a result, computes, reads or writes; or
 *      it computes without end and without a result. How long it takes in all does not matter, so a busy
 *      machine or a slow disk fails nothing.
 *  (2) Nothing of it stays, however it ends: no process, mount or loop device, and no file. What it has not
 *      ended itself counts as a failure.
 *
 * Its processes are known by a mark in their environment, its mounts and files by the folder that it gets
 * for its temporary files.
 */
import { spawn, spawnSync } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { chmodSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { ROOT } from './bootstrap.mjs'

const LIMITS = {
  /** Without any progress; then the process hangs. */
  quietSeconds: 300,
  /** Of a processor, without a result; then it is in an endless loop. A long run's tests do more each. */
  busySeconds: process.env.VIMGFS_TEST_LONG === '1' ? 6 * 3600 : 900,
  /** Servers may still write when the test that has unmounted them has ended. */
  leftQuietSeconds: 20,
  /** A look takes milliseconds of a processor. */
  lookMs: 10_000,
}
/** For tap to say which test it was in. */
const LAST_WORDS_MS = 15_000

/**
 * The command that puts a process into a mount namespace of its own, where that is allowed: a test that looks at who else
 * has a mount must not find the tests that run beside it.
 */
let isolated
function isolation() {
  const words = ['unshare', '--mount', '--propagation', 'private']
  isolated ??=
    process.getuid() === 0 && spawnSync(words[0], [...words.slice(1), 'true']).status === 0
  return isolated ? words : []
}

/** All that was started and has not been swept yet. */
const running = new Set()
let folders
let count = 0

/** `activity` is test/support/activity.ts. */
export class TestProcess {
  /** Why it was ended; undefined if it was not. */
  hangs
  /** The leftovers of the test, for messages. */
  left = []
  #mark
  #folder
  #child
  #activity
  #progress
  #limits
  /** Its exit code and the signal that has ended it. */
  #exited
  #isOver = false

  constructor(activity, args, env, limits = LIMITS) {
    this.#limits = limits
    this.#folder = temporaryFolder(`${++count}`)
    // Some tests run as an ordinary user.
    chmodSync(this.#folder, 0o1777)
    this.#activity = activity
    this.#mark = randomUUID()
    const [command, ...words] = [...isolation(), process.execPath, ...args]
    this.#child = spawn(command, words, {
      cwd: ROOT,
      env: { ...process.env, ...env, TMPDIR: this.#folder, [activity.MARK]: this.#mark },
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    this.#exited = new Promise((resolve, reject) => {
      this.#child.once('error', reject)
      this.#child.once('exit', (exitCode, signal) => {
        this.#isOver = true
        resolve({ exitCode, signal })
      })
    })
    this.#progress = new activity.Progress(this.#pids())
    running.add(this)
  }

  /** Hands its output on; resolves to its exit code and signal once it has ended and nothing is left of it. */
  async run({ stdout, stderr }) {
    const child = this.#child
    child.stdout.on('data', data => {
      this.#progress.sign()
      stdout(data)
    })
    child.stderr.on('data', stderr)
    const closed = new Promise(resolve => {
      child.once('close', resolve)
    })
    await Promise.all([this.#watch(), this.#exited])
    await this.#settle()
    this.sweep()
    // The processes that held these open have ended by now, unless the kernel does not let go of them.
    const timer = setTimeout(() => {
      child.stdout.destroy()
      child.stderr.destroy()
    }, LAST_WORDS_MS)
    await closed
    clearTimeout(timer)
    return this.#exited
  }

  /** Ends what it has started and takes away its mounts, loop devices and files. */
  sweep() {
    const { mountsBelow, loopsBelow } = this.#activity
    const folder = this.#folder
    this.#child.kill('SIGKILL')
    const left = this.#pids()
    const mounts = new Set(['self', ...left].flatMap(pid => mountsBelow(folder, pid)))
    this.left.push(...[...mounts].map(mount => `mount ${mount}`))
    // Their files have other names, or none, once the mounts have gone.
    const loops = loopsBelow(folder)
    this.left.push(...loops.map(loop => `loop device ${loop}`))
    // Servers first: what waits for one that hangs can be ended only then. A namespace goes with its last process.
    for (const pid of left) this.#kill(pid)
    for (const mount of mountsBelow(folder)) this.#run('umount', '-l', mount)
    // A busy one goes once the kernel has removed the mounts of it.
    for (const loop of loops) this.#run('losetup', '--detach', loop)
    if (mountsBelow(folder).length === 0) remove(folder)
    running.delete(this)
  }

  async #watch() {
    const { quietSeconds, busySeconds, lookMs } = this.#limits
    const progress = this.#progress
    while (!this.#isOver) {
      await Promise.race([sleep(lookMs, undefined, { ref: false }), this.#exited])
      if (this.#isOver) return
      progress.look(this.#pids())
      if (progress.quiet > quietSeconds) {
        this.hangs = `it hangs: no output, no processor time, nothing read or written for ${quietSeconds} s`
      } else if (progress.busy > busySeconds) {
        this.hangs = `it does not end: ${busySeconds} s of processor time without a result`
      } else continue
      return this.#end()
    }
  }

  /** tap says at this signal in which test it is, if the process can still do anything. */
  async #end() {
    this.#child.kill('SIGALRM')
    await Promise.race([sleep(LAST_WORDS_MS, undefined, { ref: false }), this.#exited])
    this.#child.kill('SIGKILL')
  }

  /** Waits for what ends by itself. */
  async #settle() {
    const progress = new this.#activity.Progress(this.#pids())
    for (let pids = this.#pids(); pids.length > 0; pids = this.#pids()) {
      if (this.hangs || progress.quiet > this.#limits.leftQuietSeconds) break
      await sleep(20)
      progress.look(pids)
    }
  }

  #pids() {
    return this.#activity.markedProcesses(this.#mark)
  }

  #kill(pid) {
    const command = this.#activity.commandOf(pid)
    try {
      process.kill(pid, 'SIGKILL')
      this.left.push(`process ${pid} ${command}`)
    } catch {
      // It has ended meanwhile.
    }
  }

  #run(command, ...args) {
    spawnSync(command, args, { stdio: 'ignore', timeout: LAST_WORDS_MS })
  }
}

/** Ends everything at once, for a run that is broken off. */
export function sweepAll() {
  for (const each of running) each.sweep()
  removeFolders()
}

/** Makes a folder for files of this run; `removeFolders` removes it. */
export function temporaryFolder(name) {
  folders ??= mkdtempSync(join(tmpdir(), 'vimgfs-tests-'))
  chmodSync(folders, 0o711)
  const folder = join(folders, name)
  mkdirSync(folder)
  return folder
}

/** Removes the folders of this run; what is still in use stays. */
export function removeFolders() {
  if (folders === undefined) return
  remove(folders)
}

function remove(folder) {
  try {
    // A process that was killed may write until it is gone.
    rmSync(folder, { recursive: true, force: true, maxRetries: 10 })
  } catch {
    // A mount that cannot be ended is in it.
  }
}
