/** Checks the limits on open files and threads before mounting: a server must not meet them later. */
import fs from 'node:fs'
import { MountError } from '../../errors.js'

/**
 * The descriptors that a mount opens later: to mount, to answer for the first time, to unmount, to reopen the log, to
 * decompress, and for the connections of commands.
 */
export const DESCRIPTORS_TO_SERVE = 20
/** The descriptors of a worker: four of Node's event loop, and two of /dev/fuse. */
export const DESCRIPTORS_A_WORKER = 6

/** Throws MountError unless this process may open `count` more files. */
export function requireDescriptors(count: number): void {
  const opened: number[] = []
  try {
    while (opened.length < count) opened.push(fs.openSync('/dev/null', 'r'))
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code !== 'EMFILE' && code !== 'ENFILE') throw error
  } finally {
    for (const fd of opened) fs.closeSync(fd)
  }
  const missing = count - opened.length
  if (missing === 0) return
  throw new MountError(
    `the limit of open files is ${softLimit('open files')}, and ${missing} more are needed; raise it with ulimit -n`,
  )
}

/**
 * Throws MountError unless this user may have `count` more threads. Node would hang or abort if it cannot start one.
 */
export function requireThreads(count: number): void {
  // The limit does not hold for root.
  if (process.geteuid?.() === 0) return
  const limit = softLimit('processes')
  if (limit === undefined || limit > HIGH_LIMIT) return
  const missing = threadsOf(process.getuid?.() ?? 0) + count - limit
  if (missing <= 0) return
  throw new MountError(
    `the limit of processes is ${limit}, and ${missing} more are needed; raise it with ulimit -u`,
  )
}

/**
 * The memory of a thread that runs JavaScript: V8 reserves most of it and never uses it. Node aborts the process if it is not
 * there.
 */
const THREAD_ADDRESS_BYTES = 768 * 2 ** 20
const THREAD_DATA_BYTES = 64 * 2 ** 20

/** Throws MountError unless the limits on memory leave room for one more thread of JavaScript. */
export function requireThreadMemory(): void {
  const pages = fs.readFileSync('/proc/self/statm', 'utf8').split(' ').map(Number)
  requireBytes('address space', 'v', pages[0] as number, THREAD_ADDRESS_BYTES)
  requireBytes('data size', 'd', pages[5] as number, THREAD_DATA_BYTES)
}

function requireBytes(name: string, option: string, usedPages: number, neededBytes: number): void {
  const limit = softLimit(name)
  if (limit === undefined || usedPages * PAGE_BYTES + neededBytes <= limit) return
  throw new MountError(
    `the limit of the ${name} is ${limit} bytes, and ${neededBytes} more are needed; raise it with ulimit -${option}`,
  )
}

/** Returns why a process could not be started (EAGAIN of fork(2)), and the way out. */
export function whyNoProcess(): string {
  const limit = softLimit('processes')
  const what =
    limit === undefined ? 'no more processes can be made' : `the limit of processes is ${limit}`
  return `${what}; raise it with ulimit -u, or end other processes of this user`
}

/** Pages that proc(5) counts. Larger ones, which some processors have, make the check more careful. */
const PAGE_BYTES = 4096

/** Limits above this are not checked: counting would cost too much. */
const HIGH_LIMIT = 1000

function threadsOf(uid: number): number {
  let count = 0
  for (const pid of fs.readdirSync('/proc').filter(name => /^[0-9]+$/.test(name))) {
    try {
      if (fs.statSync(`/proc/${pid}`).uid !== uid) continue
      count += fs.readdirSync(`/proc/${pid}/task`).length
    } catch {
      // The process has ended meanwhile.
    }
  }
  return count
}

/** Returns a limit of this process (proc(5), /proc/pid/limits); undefined if there is none. */
function softLimit(name: string): number | undefined {
  const text = fs.readFileSync('/proc/self/limits', 'utf8')
  const digits = new RegExp(`^Max ${name} +([0-9]+)`, 'm').exec(text)?.[1]
  return digits === undefined ? undefined : Number(digits)
}
