/**
 * Reads the locks of VMware's programs (open-vm-tools, lib/file/fileLockPrimitive.c, fileLockPosix.c and file.c,
 * lib/misc/machineID.c). They are files, so they stay when their program dies.
 *
 * Beside a disk in use there is a folder with the disk's name and the suffix `.lck`. Each program that uses the disk has a
 * member in it, named `M`, 5 digits and `.lck`, of 512 bytes: words separated by blanks, then NULs. The words are the machine,
 * the process (`pid-start(name)`; start and name may be missing), a number for taking turns, `X` for writing or `S` for
 * reading, the start again, and properties. While a program makes its member, which takes a moment, it has a folder `D` with
 * the same number there.
 *
 *  (1) A lock of this machine is stale if its process has ended, or if a process with that id started at another time. A lock
 *      of another machine may be alive as far as is known, so it is live.
 *  (2) In doubt a lock is live: a member that cannot be read or understood, a process whose start is unknown. VMware's
 *      programs treat damaged members in both ways: one that wants the lock deletes them, one that only asks takes them for
 *      locks.
 *  (3) A folder without members is not a lock, since programs leave it behind. Files with other names are not locks either.
 *  (4) A `D` that is 8 seconds old is from a program that died.
 *  (5) A file in place of the folder is a lock of old programs or of an ESX host. It does not name its owner, and VMware's
 *      programs respect it as long as it exists, so it is live.
 */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { printable } from '../../errors.js'
import { openPlain, pathOfDescriptor } from '../../io/beneath.js'
import { type Folder, findWithin } from '../../io/folders.js'
import { closeFile } from '../../io/libc.js'
import type { ForeignLock } from '../foreign-lock.js'

/** The content of a member. */
export interface LockRecord {
  /** The machine, by VMware's name. */
  readonly machine: string
  /** Undefined if it makes no sense. */
  readonly process: LockProcess | undefined
  readonly writes: boolean
}

export interface LockProcess {
  readonly pid: number
  /** The start in its machine's time; on Linux in clock ticks since boot. Undefined if it is missing. */
  readonly start: bigint | undefined
  readonly program: string | undefined
}

/** The facts about this machine that decide about locks. */
export interface Here {
  readonly hostName: string
  /** The addresses of all network interfaces, such as `00:50:56:c0:00:08`. */
  readonly macs: readonly string[]
  /** Whether a process that cannot be seen does not exist. If not, every lock is live. */
  readonly seesAllProcesses: boolean
}

const SUFFIX = '.lck'
const ENTRY_NAME = /^[MD][0-9]{5}.*\.lck$/s
/** The most members that are read, and the most bytes of one: VMware writes 512. */
const MAX_MEMBERS = 64
const MAX_MEMBER_BYTES = 4096
const MAX_WORDS = 16
const MAX_OWNER_LENGTH = 300
/** Rule (4), in milliseconds. */
const ENTRY_AGE = 8000

/**
 * Returns the locks that VMware's programs hold on `imagePath` or have left behind: beside that name, also if it is a symbolic
 * link, and beside the file that it leads to. It reads only locks within `allowed`; locks elsewhere are live. Never throws.
 */
export function vmwareLocks(
  imagePath: string,
  allowed: readonly Folder[],
  here?: Here,
): ForeignLock[] {
  const given = path.resolve(imagePath)
  const names = new Set([given, realOf(given)])
  return [...names].flatMap(name => locksAt(`${name}${SUFFIX}`, allowed, here))
}

/** Parses a member, whose words end at the first NUL. Returns undefined if they make no sense. */
export function parseLock(content: Buffer): LockRecord | undefined {
  const nul = content.indexOf(0)
  const words = content
    .toString('utf8', 0, nul < 0 ? content.length : nul)
    .split(' ')
    .filter(word => word !== '')
  const [machine, id, turn = '', type = '', start = ''] = words
  if (machine === undefined || id === undefined || words.length > MAX_WORDS) return undefined
  if (!/^[0-9]+$/.test(turn) || (type !== 'X' && type !== 'S')) return undefined
  const holder = processOf(id)
  // Older programs write the start only after the type.
  const isOlder = words.length === 6 && /^[0-9]+$/.test(id)
  const process = holder && isOlder ? { ...holder, start: startOf(start) } : holder
  return { machine, process, writes: type === 'X' }
}

/** Reports whether a member's machine is `here`, or cannot be told from it. */
export function isSameMachine(machine: string, { hostName, macs }: Here): boolean {
  // 16 characters of Base64, with `-` for `/`; programs on other systems write `uuid=…`.
  const base64 = machine.replaceAll('-', '/')
  if (!/^[A-Za-z0-9+/]{16}$/.test(base64)) return false
  const id = Buffer.from(base64, 'base64')
  // A hash of the host's name, the address of eth0 or the next interface, and 2 NULs.
  const mac = id.subarray(4, 10)
  // Prefer the address: a host's name may change while it runs, its address hardly does.
  if (mac.some(byte => byte !== 0)) {
    return macs.some(own => own.replaceAll(':', '').toLowerCase() === mac.toString('hex'))
  }
  const hash = id.readUInt32LE(0)
  return hash === 0 || hash === hashOf(hostName)
}

/** The hash function DJB2. */
const hashOf = (text: string): number =>
  Buffer.from(text).reduce((hash, byte) => (Math.imul(hash, 33) + byte) >>> 0, 5381)

function processOf(id: string): LockProcess | undefined {
  const match = /^([0-9]{1,10})(?:-([0-9]+))?(?:\((.*)\))?/s.exec(id)
  if (!match) return undefined
  const [, digits, start = '', program] = match
  const pid = Number(digits)
  return pid > 0 && pid < 2 ** 31 ? { pid, start: startOf(start), program } : undefined
}

/** Returns a start; undefined for 0, which means that the program could not find it out. */
const startOf = (digits: string): bigint | undefined =>
  /^[0-9]{1,20}$/.test(digits) ? BigInt(digits) || undefined : undefined

function locksAt(lock: string, allowed: readonly Folder[], here: Here | undefined): ForeignLock[] {
  try {
    const place = findWithin(lock, allowed)
    if (place === undefined) return fs.lstatSync(lock) && [unknown(lock)]
    try {
      const stat = fs.fstatSync(place)
      // Rule (5).
      if (stat.isFile()) return [unknown(lock)]
      return stat.isDirectory() ? locksIn(lock, place, here) : []
    } finally {
      closeFile(place)
    }
  } catch (error) {
    return isGone(error) ? [] : [unknown(lock)]
  }
}

/** @param place an O_PATH descriptor of `folder` */
function locksIn(folder: string, place: number, given: Here | undefined): ForeignLock[] {
  const names = fs.readdirSync(pathOfDescriptor(place))
  const entries = names.filter(name => ENTRY_NAME.test(name)).sort()
  if (entries.length === 0) return []
  const here = given ?? thisMachine()
  const found = entries.slice(0, MAX_MEMBERS).flatMap(name => {
    const file = path.join(folder, name)
    try {
      return name.startsWith('D')
        ? enteringAt(file, path.join(pathOfDescriptor(place), name))
        : memberAt(file, openPlain(place, Buffer.from(name)), here)
    } catch (error) {
      return isGone(error) ? [] : unknown(file)
    }
  })
  const rest = entries.length - MAX_MEMBERS
  return rest > 0 ? [...found, { ...unknown(folder), owner: `${rest} more programs` }] : found
}

/** Returns a live lock without details: rule (2). */
const unknown = (file: string): ForeignLock => ({
  path: file,
  isLive: true,
  owner: 'a program that is not known',
  writes: true,
})

/** Applies rule (4) to a `D`. A clock that is ahead of ours does not make it older. */
function enteringAt(file: string, place: string): ForeignLock {
  const isLive = Date.now() - fs.lstatSync(place).mtimeMs < ENTRY_AGE
  return { ...unknown(file), isLive, owner: 'a program that began to take it' }
}

/** @param fd the open member; undefined if it is not a regular file */
function memberAt(file: string, fd: number | undefined, here: Here): ForeignLock {
  const content = fd === undefined ? undefined : readMember(fd)
  const record = content && parseLock(content)
  if (!record) return unknown(file)
  const { machine, process, writes } = record
  const isOurs = isSameMachine(machine, here)
  const isLive = !isOurs || !here.seesAllProcesses || !process || isRunning(process)
  return { path: file, isLive, owner: ownerOf(process, isOurs ? undefined : machine), writes }
}

/** Reads a whole member, and closes it. Returns undefined if it is not VMware's. */
function readMember(fd: number): Buffer | undefined {
  try {
    const bytes = Buffer.alloc(MAX_MEMBER_BYTES + 1)
    const length = fs.readSync(fd, bytes, 0, bytes.length, 0)
    return length <= MAX_MEMBER_BYTES ? bytes.subarray(0, length) : undefined
  } finally {
    fs.closeSync(fd)
  }
}

/** @param machine the machine, if it is another one */
function ownerOf(process: LockProcess | undefined, machine: string | undefined): string {
  const of = machine === undefined ? '' : ` of another machine, ${machine}`
  if (!process) return shown(`a program${of}`)
  const { pid, program } = process
  return shown(program ? `${program} (process ${pid}${of})` : `process ${pid}${of}`)
}

const shown = (text: string): string => printable(text).slice(0, MAX_OWNER_LENGTH)

/** Applies rule (1) to a process of this machine. */
function isRunning({ pid, start }: LockProcess): boolean {
  try {
    process.kill(pid, 0)
  } catch (error) {
    // With any other error the process exists.
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false
  }
  const actual = start && startOfRunning(pid)
  return actual === undefined || actual === start
}

/** Returns field 22 of proc_pid_stat(5), after the name in parentheses; undefined if it may not be read. */
function startOfRunning(pid: number): bigint | undefined {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, 'latin1')
    return startOf(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? '')
  } catch {
    return undefined
  }
}

/** The first PID namespace; the kernel fixes its number (PROC_PID_INIT_INO). */
const ALL_PROCESSES = 'pid:[4026531836]'

function thisMachine(): Here {
  const read = (file: string) => fs.readFileSync(file, 'latin1').trim()
  const list = <T>(act: () => T[]): T[] => {
    try {
      return act()
    } catch {
      return []
    }
  }
  const folder = '/sys/class/net'
  const macs = list(() => fs.readdirSync(folder)).flatMap(name =>
    list(() => [read(`${folder}/${name}/address`)]),
  )
  const [namespace] = list(() => [fs.readlinkSync('/proc/self/ns/pid')])
  return { hostName: os.hostname(), macs, seesAllProcesses: namespace === ALL_PROCESSES }
}

function realOf(file: string): string {
  try {
    return fs.realpathSync(file)
  } catch {
    return file
  }
}

/** Reports whether an error means that nothing of that name exists or can exist. */
const isGone = (error: unknown): boolean =>
  ['ENOENT', 'ENOTDIR', 'ENAMETOOLONG'].includes((error as NodeJS.ErrnoException).code ?? '')
