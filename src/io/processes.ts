/** Other processes, as /proc shows them (proc(5)). Nothing here touches the files that they have open. */
import fs from 'node:fs'
import path from 'node:path'

/** Returns the ids of all processes that /proc lists. */
export const processIds = (): number[] => list('/proc').map(Number).filter(Number.isInteger)

/** Returns the names in `folder`; none if it cannot be read. */
export function list(folder: string): string[] {
  try {
    return fs.readdirSync(folder)
  } catch {
    return []
  }
}

/** Returns the text of a small file in /proc or /sys without its last newline; undefined if it cannot be read. */
export function textOf(file: string): string | undefined {
  try {
    return fs.readFileSync(file, 'utf8').trimEnd()
  } catch {
    return undefined
  }
}

/** Returns where a link in /proc leads; undefined if it cannot be read. */
export function linkOf(link: string): string | undefined {
  try {
    return fs.readlinkSync(link)
  } catch {
    return undefined
  }
}

/** Returns the effective user id of process `pid`; undefined if it has ended. */
export function userOf(pid: number): number | undefined {
  return fs.statSync(`/proc/${pid}`, { throwIfNoEntry: false })?.uid
}

/**
 * Returns the start of process `pid` in clock ticks (stat, field 22); undefined if it has ended. It tells processes apart
 * that have the same id one after the other.
 */
export function startOf(pid: number): string | undefined {
  const fields = statOf(pid)
  // A zombie has ended when its last thread has: until then threads may hold the image.
  const hasEnded = fields?.[0] === 'Z' && list(`/proc/${pid}/task`).length <= 1
  return hasEnded ? undefined : fields?.[19]
}

/** Reports whether process `pid` is stopped, by SIGSTOP or a debugger. */
export const isStopped = (pid: number): boolean => /^[Tt]/.test(statOf(pid)?.[0] ?? '')

/** Returns the fields of stat from the third on. The second is a name and may contain spaces and parentheses. */
function statOf(pid: number): string[] | undefined {
  const stat = textOf(`/proc/${pid}/stat`)
  return stat?.slice(stat.lastIndexOf(')') + 2).split(' ')
}

/** Returns the program and the id of process `pid`, for messages. */
export function processName(pid: number): string {
  const [program = '', script] = textOf(`/proc/${pid}/cmdline`)?.split('\0') ?? []
  const isOurs = isServerName(commandOf(pid)) || (script && script === process.argv[1])
  const name = isOurs ? 'vimgfs' : path.basename(program) || commandOf(pid) || 'a program'
  return `${name} (process ${pid})`
}

/** Returns the processes that have the device `file` open, as far as this user may see. */
export function processesWithOpen(file: string): number[] {
  const real = fs.realpathSync.native(file)
  return processIds().filter(pid =>
    list(`/proc/${pid}/fd`).some(fd => linkOf(`/proc/${pid}/fd/${fd}`) === real),
  )
}

/*
 * A server's process name says which mount it serves, by the minor number of the mount's device: `vimgfs:42`. Every user
 * can read it, also if the server does not answer. Any process may take such a name, so its user must fit, too.
 */
const SERVING = /^vimgfs:([0-9]+)$/
const ENDING = 'vimgfs:ending'
const isServerName = (name = ''): boolean => name === ENDING || SERVING.test(name)

const commandOf = (pid: number): string | undefined => textOf(`/proc/${pid}/comm`)

/** Names this process as the server of the mount with the device number `device` ("0:42"). */
export function nameServer(device: string): void {
  rename(`vimgfs:${device.split(':')[1]}`)
}

/** Names this process as a server that saves what was written, after its mount has gone. */
export function nameEndingServer(): void {
  rename(ENDING)
}

function rename(name: string): void {
  try {
    fs.writeFileSync('/proc/self/comm', name)
  } catch {
    // Then the messages of other commands say less.
  }
}

/**
 * Returns the process of user `uid` that serves the mount with the device number `device`. The kernel uses the number of
 * an old mount again, so of several processes with that name it is the one that started last.
 */
export function serverOfDevice(device: string, uid: number): number | undefined {
  const named = processIds()
    .filter(pid => deviceOfServer(pid) === device && userOf(pid) === uid)
    .map(pid => ({ pid, start: startOf(pid) }))
    .filter(({ start }) => start !== undefined)
    .sort((a, b) => Number(b.start) - Number(a.start))
  return named[0]?.pid
}

/** Returns the device number of the mount that process `pid` serves, by its name; undefined for other programs. */
export function deviceOfServer(pid: number): string | undefined {
  const minor = SERVING.exec(commandOf(pid) ?? '')?.[1]
  return minor && `0:${minor}`
}

/** Reports whether process `pid` has the name of a server whose mount has gone. */
export const isEndingServer = (pid: number): boolean => commandOf(pid) === ENDING
