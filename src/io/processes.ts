/** Other processes, by what /proc says of them (proc(5)). Nothing here touches the files that they have open. */
import fs from 'node:fs'
import path from 'node:path'

/** The numbers of all processes that /proc lists. */
export const processIds = (): number[] => list('/proc').map(Number).filter(Number.isInteger)

/** The names in `folder`; none where it cannot be read. */
export function list(folder: string): string[] {
  try {
    return fs.readdirSync(folder)
  } catch {
    return []
  }
}

/** All of a small file in /proc or /sys without the line's end; undefined where it cannot be read. */
export function textOf(file: string): string | undefined {
  try {
    return fs.readFileSync(file, 'utf8').trimEnd()
  } catch {
    return undefined
  }
}

/** Where a link in /proc leads; undefined where it cannot be read. */
export function linkOf(link: string): string | undefined {
  try {
    return fs.readlinkSync(link)
  } catch {
    return undefined
  }
}

/** The effective user of process `pid`; undefined when it has ended. */
export function userOf(pid: number): number | undefined {
  return fs.statSync(`/proc/${pid}`, { throwIfNoEntry: false })?.uid
}

/**
 * The start of process `pid` in clock ticks (stat, field 22); undefined when it has ended. A number that is
 * used again has another start.
 */
export function startOf(pid: number): string | undefined {
  const fields = statOf(pid)
  // A zombie has ended once its last thread has: until then threads may hold the image.
  const hasEnded = fields?.[0] === 'Z' && list(`/proc/${pid}/task`).length <= 1
  return hasEnded ? undefined : fields?.[19]
}

/** Whether process `pid` is stopped, by SIGSTOP or a debugger. */
export const isStopped = (pid: number): boolean => /^[Tt]/.test(statOf(pid)?.[0] ?? '')

/** The fields of stat from the third on. The name in the second may hold anything, also spaces and parentheses. */
function statOf(pid: number): string[] | undefined {
  const stat = textOf(`/proc/${pid}/stat`)
  return stat?.slice(stat.lastIndexOf(')') + 2).split(' ')
}

/** The program of process `pid` and its number, for messages. */
export function processName(pid: number): string {
  const [program = '', script] = textOf(`/proc/${pid}/cmdline`)?.split('\0') ?? []
  const isOurs = isServerName(commandOf(pid)) || (script && script === process.argv[1])
  const name = isOurs ? 'vimgfs' : path.basename(program) || commandOf(pid) || 'a program'
  return `${name} (process ${pid})`
}

/** The processes that have `file`, a device, open, as far as we may see. */
export function processesWithOpen(file: string): number[] {
  const real = fs.realpathSync.native(file)
  return processIds().filter(pid =>
    list(`/proc/${pid}/fd`).some(fd => linkOf(`/proc/${pid}/fd/${fd}`) === real),
  )
}

/*
 * A server's name says which mount it serves, by the minor number of the mount's device: `vimgfs:42`. Everybody
 * can read it, also when the server does not answer. Anybody may call his process so, which is why the user of
 * the process has to fit as well.
 */
const SERVING = /^vimgfs:([0-9]+)$/
const ENDING = 'vimgfs:ending'
const isServerName = (name = ''): boolean => name === ENDING || SERVING.test(name)

const commandOf = (pid: number): string | undefined => textOf(`/proc/${pid}/comm`)

/** Names this process as the server of the mount with the number `device` ("0:42"). */
export function nameServer(device: string): void {
  rename(`vimgfs:${device.split(':')[1]}`)
}

/** Names this process as a server whose mount has gone and that saves what was written. */
export function nameEndingServer(): void {
  rename(ENDING)
}

function rename(name: string): void {
  try {
    fs.writeFileSync('/proc/self/comm', name)
  } catch {
    // Messages of other commands then know less.
  }
}

/**
 * The process of `uid` that serves the mount with the number `device`. The kernel gives the number of a mount that
 * has gone to the next one, so of several processes with that name the one that started last is meant.
 */
export function serverOfDevice(device: string, uid: number): number | undefined {
  const named = processIds()
    .filter(pid => deviceOfServer(pid) === device && userOf(pid) === uid)
    .map(pid => ({ pid, start: startOf(pid) }))
    .filter(({ start }) => start !== undefined)
    .sort((a, b) => Number(b.start) - Number(a.start))
  return named[0]?.pid
}

/** The number of the mount that process `pid` serves, by its name; undefined for other programs. */
export function deviceOfServer(pid: number): string | undefined {
  const minor = SERVING.exec(commandOf(pid) ?? '')?.[1]
  return minor && `0:${minor}`
}

/** Whether process `pid` says that it is a server whose mount has gone. */
export const isEndingServer = (pid: number): boolean => commandOf(pid) === ENDING
