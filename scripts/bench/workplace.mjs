/**
 * The place of a run: one folder on tmpfs, the processes started from it and the mounts below it.
 *
 *  (1) Everything that a run creates lies in that folder, whose name is unique. So a mount or a process belongs to the run
 *      if and only if that name is in its mount point or its command line.
 *  (2) cleanup() is synchronous and may be called twice: it also runs on a signal and at 'exit'.
 *  (3) Nothing is removed while something is mounted below: that would delete through the mount.
 *  (4) Every child has a time limit; no synchronous file function is called on a FUSE mount.
 */
import { spawn, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'

const TMPFS_MAGIC = 0x01021994
const PREFIX = 'vimgfs-bench-'
const SHARED_MEMORY = '/dev/shm'

export const isRoot = process.getuid() === 0
export const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))
const sleepSync = ms => Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms)

/** Rotates a list, so that no server always follows the same one. */
export const rotated = (list, by) => list.map((_, i) => list[(i + by) % list.length])

const children = new Set()

/** Runs a command to its end. Rejects if it fails (unless `mayFail`), and if it takes too long. */
export function run(command, args, { timeoutMs = 120_000, mayFail = false, cwd, env } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] })
    children.add(child)
    let stdout = ''
    let stderr = ''
    let late = false
    const timer = setTimeout(() => {
      late = true
      child.kill('SIGKILL')
    }, timeoutMs)
    child.stdout.setEncoding('utf8').on('data', text => (stdout += text))
    child.stderr.setEncoding('utf8').on('data', text => (stderr += text))
    const done = (code, error) => {
      clearTimeout(timer)
      children.delete(child)
      child.stdout.destroy()
      child.stderr.destroy()
      if (code === 0 || (mayFail && !late)) return resolve({ code, stdout, stderr })
      const why = error?.message ?? (late ? `no end after ${timeoutMs} ms` : stderr.trim())
      reject(new Error(`${command}: ${why || `exit code ${code}`}`))
    }
    child.on('error', error => done(null, error))
    child.on('close', code => done(code))
    // A server that went to the background may keep the pipes open: then 'close' never comes.
    child.on('exit', code => setTimeout(done, 200, code).unref())
  })
}

/** Starts a server that stays in front. Keeps its stderr for the error message. */
export function start(command, args, { env } = {}) {
  const child = spawn(command, args, { env, stdio: ['ignore', 'ignore', 'pipe'] })
  children.add(child)
  child.said = ''
  child.stderr
    .setEncoding('utf8')
    .on('data', text => (child.said = (child.said + text).slice(-2000)))
  child.on('error', error => (child.said += error.message))
  child.on('exit', () => children.delete(child))
  return child
}

export const has = async command =>
  (await run('sh', ['-c', 'command -v "$1"', 'sh', command], { mayFail: true })).code === 0

export class Workplace {
  #mounted = false
  #count = 0

  /** Takes /dev/shm if it is a tmpfs with room, else mounts a tmpfs, else takes a disk and notes that. */
  constructor({ parent, needBytes, note }) {
    let base = parent ?? SHARED_MEMORY
    if (!parent && !(isTmpfs(base) && freeBytes(base) > needBytes)) base = os.tmpdir()
    removeStale(base)
    this.dir = fs.mkdtempSync(path.join(base, `${PREFIX}${process.pid}-`))
    if (!isTmpfs(this.dir) && !parent && isRoot) {
      this.#mounted = spawnSync('mount', ['-t', 'tmpfs', 'vimgfs-bench', this.dir]).status === 0
    }
    if (!isTmpfs(this.dir)) note(`the files lay in ${base}, which is no tmpfs`)
    const free = Math.min(freeBytes(this.dir), isTmpfs(this.dir) ? os.freemem() : Infinity)
    if (free < needBytes) {
      this.cleanup()
      const gib = bytes => (bytes / 2 ** 30).toFixed(1)
      throw new Error(
        `${gib(needBytes)} GiB of memory are needed and ${gib(free)} free: --size less`,
      )
    }
  }

  /**
   * Writes and frees memory. In a virtual machine the first touch of a page goes to the host and costs several times as much
   * as a read. Without this the servers that are measured first would pay for the others.
   */
  touchMemory(bytes) {
    const file = this.path('touch')
    const block = Buffer.alloc(2 ** 24)
    const fd = fs.openSync(file, 'wx')
    for (let at = 0; at < bytes; at += block.length) fs.writeSync(fd, block)
    fs.closeSync(fd)
    fs.rmSync(file)
  }

  path(...names) {
    return path.join(this.dir, ...names)
  }

  /** Makes a new folder. Its number keeps (1) true if one server's name begins with another's. */
  folder(name) {
    const folder = this.path(`${++this.#count}-${name}`)
    fs.mkdirSync(folder)
    return folder
  }

  cleanup() {
    if (!fs.existsSync(this.dir)) return
    detachLoops(this.dir)
    for (const child of children) child.kill('SIGTERM')
    for (const mount of mountsBelow(this.dir)) unmountLazily(mount)
    for (const signal of ['SIGTERM', 'SIGKILL']) {
      for (let i = 0; i < 40; i++) {
        const pids = pidsMentioning(this.dir)
        if (pids.length === 0) break
        if (i === 0) for (const pid of pids) kill(pid, signal)
        sleepSync(50)
      }
    }
    if (mountsBelow(this.dir).length > 0) {
      process.stderr.write(`bench: still mounted, so left alone: ${this.dir}\n`)
      return // rule (3)
    }
    if (this.#mounted) spawnSync('umount', ['-l', this.dir])
    fs.rmSync(this.dir, { recursive: true, force: true })
  }
}

/** Removes what a killed run left behind: the folder's name contains its process id. */
function removeStale(base) {
  for (const name of fs.readdirSync(base)) {
    const pid = Number(new RegExp(`^${PREFIX}(\\d+)-`).exec(name)?.[1])
    if (!pid || fs.existsSync(`/proc/${pid}`)) continue
    const dir = path.join(base, name)
    detachLoops(dir)
    for (const mount of mountsBelow(dir)) unmountLazily(mount)
    for (const pid of pidsMentioning(dir)) kill(pid, 'SIGKILL')
    sleepSync(100)
    if (mountsBelow(dir).length > 0) continue
    if (mountPoints().includes(dir)) spawnSync('umount', ['-l', dir])
    fs.rmSync(dir, { recursive: true, force: true })
  }
}

function isTmpfs(dir) {
  return fs.statfsSync(dir).type === TMPFS_MAGIC
}

function freeBytes(dir) {
  const { bavail, bsize } = fs.statfsSync(dir)
  return bavail * bsize
}

function mountPoints() {
  const plain = text => text.replace(/\\(\d{3})/g, (_, o) => String.fromCharCode(parseInt(o, 8)))
  const lines = fs.readFileSync('/proc/self/mountinfo', 'utf8').trim().split('\n')
  return lines.map(line => plain(line.split(' ')[4]))
}

/** Returns the mounts below `dir`, the last one first: the order to unmount them. */
export const mountsBelow = dir =>
  mountPoints()
    .filter(point => point.startsWith(`${dir}/`))
    .reverse()

export function unmountLazily(mount) {
  const [command, ...args] = isRoot ? ['umount', '-l'] : ['fusermount3', '-uz']
  spawnSync(command, [...args, mount], { timeout: 5000 })
}

/** Detaches loop devices over files below `dir`. One that is mounted goes away when it is unmounted. */
export function detachLoops(dir) {
  for (const name of fs.readdirSync('/sys/block').filter(name => name.startsWith('loop'))) {
    const setting = `/sys/block/${name}/loop/backing_file`
    if (!fs.existsSync(setting) || !fs.readFileSync(setting, 'utf8').startsWith(`${dir}/`)) continue
    spawnSync('losetup', ['-d', `/dev/${name}`], { timeout: 5000 })
  }
}

/** Returns the processes with `text` in their command line, except this one. */
export function pidsMentioning(text) {
  return numbersIn('/proc').filter(pid => {
    if (pid === process.pid) return false
    try {
      return fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(text) && !isZombie(pid)
    } catch {
      return false // it ended meanwhile
    }
  })
}

/** Returns the processes that serve any FUSE mount: they hold /dev/fuse open. */
export function pidsServing() {
  return numbersIn('/proc').filter(pid => {
    try {
      const folder = `/proc/${pid}/fd`
      return numbersIn(folder).some(fd => fs.readlinkSync(`${folder}/${fd}`) === '/dev/fuse')
    } catch {
      return false // it ended, or is another user's
    }
  })
}

const numbersIn = dir => fs.readdirSync(dir).map(Number).filter(Number.isInteger)

function isZombie(pid) {
  // The state follows the command's name, which is in parentheses and may contain any character.
  return /\) Z /.test(fs.readFileSync(`/proc/${pid}/stat`, 'utf8'))
}

export function isAlive(pid) {
  try {
    return !isZombie(pid)
  } catch {
    return false
  }
}

export function kill(pid, signal) {
  try {
    process.kill(pid, signal)
  } catch (error) {
    if (error.code !== 'ESRCH') throw error
  }
}
