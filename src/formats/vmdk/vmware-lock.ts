/**
 * The locks of VMware's programs (open-vm-tools, lib/file/fileLockPrimitive.c, fileLockPosix.c and file.c,
 * lib/misc/machineID.c). They are files, which nothing takes away when their program dies.
 *
 * Beside a disk that is in use there is a folder of its name with `.lck` behind it. Each program that uses
 * the disk has a member in it, `M` and 5 digits and `.lck`, of 512 bytes: words with blanks between them,
 * then NULs. The words are the machine, the process (`pid-start(name)`; start and name may be missing), a
 * number for taking turns, `X` for writing or `S` for reading, the start again, and properties. While it
 * makes its member, which takes a moment, a program has a folder `D` of the same number there.
 *
 *  (1) A lock of this machine is stale when its process is gone, or its number is that of a process which
 *      started at another time. A lock of another machine cannot be judged, so it is live.
 *  (2) What cannot be told is live: a member that cannot be read or understood, a process whose start
 *      nobody says. Of damaged members VMware's programs say both: who wants the lock deletes them, and
 *      who only asks takes them for locks.
 *  (3) A folder without members is no lock, since programs leave it behind; nor is what has other names.
 *  (4) A `D` that is 8 seconds old was left behind by a program that died.
 *  (5) A file in place of the folder is a lock of old programs, or of an ESX host. It does not say whose it
 *      is, and VMware's programs respect it for as long as it is there: it is live.
 */
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { printable } from '../../errors.js'
import { openPlain, pathOfDescriptor } from '../../io/beneath.js'
import { type Folder, findWithin } from '../../io/folders.js'
import { closeFile } from '../../io/libc.js'
import type { ForeignLock } from '../format.js'

/** What a member says. */
export interface LockRecord {
  /** Its machine, by the name that VMware's programs give it. */
  readonly machine: string
  /** Undefined where it makes no sense. */
  readonly process: LockProcess | undefined
  readonly writes: boolean
}

export interface LockProcess {
  readonly pid: number
  /** In the time of its machine; for Linux in clock ticks since that started. Undefined where not said. */
  readonly start: bigint | undefined
  readonly program: string | undefined
}

/** What locks are judged by. */
export interface Here {
  readonly hostName: string
  /** Of all network interfaces, as `00:50:56:c0:00:08`. */
  readonly macs: readonly string[]
  /** Whether a process that cannot be seen is not there; otherwise every lock is live. */
  readonly seesAllProcesses: boolean
}

const SUFFIX = '.lck'
const ENTRY_NAME = /^[MD][0-9]{5}.*\.lck$/s
/** Members that are read, and bytes of one: VMware writes 512. */
const MAX_MEMBERS = 64
const MAX_MEMBER_BYTES = 4096
const MAX_WORDS = 16
const MAX_OWNER_LENGTH = 300
/** Rule (4), in milliseconds. */
const ENTRY_AGE = 8000

/**
 * The locks that VMware's programs hold on `imagePath`, or have left there: beside that name, symbolic
 * link or not, which is where they put them, and beside the file that it leads to. Only locks within
 * `allowed` are looked into; one elsewhere is live. Never throws.
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

/** The words of a member, which end at the first NUL; undefined where they make no sense. */
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
  // Older programs have the start behind the type alone.
  const isOlder = words.length === 6 && /^[0-9]+$/.test(id)
  const process = holder && isOlder ? { ...holder, start: startOf(start) } : holder
  return { machine, process, writes: type === 'X' }
}

/** Whether a member's machine is `here`, or cannot be told from it. */
export function isSameMachine(machine: string, { hostName, macs }: Here): boolean {
  // 16 characters of Base64, with `-` for `/`; programs on other systems write `uuid=…`.
  const base64 = machine.replaceAll('-', '/')
  if (!/^[A-Za-z0-9+/]{16}$/.test(base64)) return false
  const id = Buffer.from(base64, 'base64')
  // A hash of the host's name, the address of eth0 or the next of its kind, and 2 NULs.
  const mac = id.subarray(4, 10)
  // A host's name may change while it runs, its address hardly does.
  if (mac.some(byte => byte !== 0)) {
    return macs.some(own => own.replaceAll(':', '').toLowerCase() === mac.toString('hex'))
  }
  const hash = id.readUInt32LE(0)
  return hash === 0 || hash === hashOf(hostName)
}

/** DJB2. */
const hashOf = (text: string): number =>
  Buffer.from(text).reduce((hash, byte) => (Math.imul(hash, 33) + byte) >>> 0, 5381)

function processOf(id: string): LockProcess | undefined {
  const match = /^([0-9]{1,10})(?:-([0-9]+))?(?:\((.*)\))?/s.exec(id)
  if (!match) return undefined
  const [, digits, start = '', program] = match
  const pid = Number(digits)
  return pid > 0 && pid < 2 ** 31 ? { pid, start: startOf(start), program } : undefined
}

/** 0 stands for a start that the program could not find out. */
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

/** @param place an O_PATH descriptor of the folder `folder` */
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

/** Where the system or a member does not say more; rule (2). */
const unknown = (file: string): ForeignLock => ({
  path: file,
  isLive: true,
  owner: 'a program that is not known',
  writes: true,
})

/** Rule (4). A clock that is ahead of ours makes it no older. */
function enteringAt(file: string, place: string): ForeignLock {
  const isLive = Date.now() - fs.lstatSync(place).mtimeMs < ENTRY_AGE
  return { ...unknown(file), isLive, owner: 'a program that began to take it' }
}

/** @param fd the open member; undefined where it is no regular file */
function memberAt(file: string, fd: number | undefined, here: Here): ForeignLock {
  const content = fd === undefined ? undefined : readMember(fd)
  const record = content && parseLock(content)
  if (!record) return unknown(file)
  const { machine, process, writes } = record
  const isOurs = isSameMachine(machine, here)
  const isLive = !isOurs || !here.seesAllProcesses || !process || isRunning(process)
  return { path: file, isLive, owner: ownerOf(process, isOurs ? undefined : machine), writes }
}

/** All of a member; undefined where it is none of VMware's. Closes it. */
function readMember(fd: number): Buffer | undefined {
  try {
    const bytes = Buffer.alloc(MAX_MEMBER_BYTES + 1)
    const length = fs.readSync(fd, bytes, 0, bytes.length, 0)
    return length <= MAX_MEMBER_BYTES ? bytes.subarray(0, length) : undefined
  } finally {
    fs.closeSync(fd)
  }
}

/** @param machine where it is another one */
function ownerOf(process: LockProcess | undefined, machine: string | undefined): string {
  const of = machine === undefined ? '' : ` of another machine, ${machine}`
  if (!process) return shown(`a program${of}`)
  const { pid, program } = process
  return shown(program ? `${program} (process ${pid}${of})` : `process ${pid}${of}`)
}

const shown = (text: string): string => printable(text).slice(0, MAX_OWNER_LENGTH)

/** Rule (1), for a process of this machine. */
function isRunning({ pid, start }: LockProcess): boolean {
  try {
    process.kill(pid, 0)
  } catch (error) {
    // Any other error is about a process that is there.
    if ((error as NodeJS.ErrnoException).code === 'ESRCH') return false
  }
  const actual = start && startOfRunning(pid)
  return actual === undefined || actual === start
}

/** Field 22 of proc_pid_stat(5), behind the name in parentheses; undefined where it is kept from us. */
function startOfRunning(pid: number): bigint | undefined {
  try {
    const stat = fs.readFileSync(`/proc/${pid}/stat`, 'latin1')
    return startOf(stat.slice(stat.lastIndexOf(')') + 2).split(' ')[19] ?? '')
  } catch {
    return undefined
  }
}

/** The first namespace of processes; its number is the kernel's own (PROC_PID_INIT_INO). */
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

/** Whether there is nothing of that name, nor could there be. */
const isGone = (error: unknown): boolean =>
  ['ENOENT', 'ENOTDIR', 'ENAMETOOLONG'].includes((error as NodeJS.ErrnoException).code ?? '')
