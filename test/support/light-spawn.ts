/**
 * Starts commands without copying this process. Node forks, and fork(2) copies the page tables: in a process of 200 MB that
 * takes 10 ms of a processor, and tests start thousands of commands. posix_spawn(3) copies nothing.
 *
 * A command gets what Node would give it: the environment, the folder, default signals, and sockets for its output. Its
 * standard input is /dev/null if nothing is to be read there.
 */
import { accessSync, constants, statSync } from 'node:fs'
import { Socket } from 'node:net'
import { constants as os } from 'node:os'
import { delimiter, join } from 'node:path'
import koffi from 'koffi'

const libc = koffi.load('libc.so.6')
const posixSpawn = libc.func(
  'int posix_spawn(_Out_ int *pid, const char *path, void *actions, void *attributes, const char **words, const char **environment)',
)
const initActions = libc.func('int posix_spawn_file_actions_init(void *actions)')
const destroyActions = libc.func('int posix_spawn_file_actions_destroy(void *actions)')
const addDup2 = libc.func('int posix_spawn_file_actions_adddup2(void *actions, int fd, int as)')
const addOpen = libc.func(
  'int posix_spawn_file_actions_addopen(void *actions, int fd, const char *path, int flags, unsigned int mode)',
)
const addChdir = libc.func(
  'int posix_spawn_file_actions_addchdir_np(void *actions, const char *path)',
)
const initAttributes = libc.func('int posix_spawnattr_init(void *attributes)')
const setFlags = libc.func('int posix_spawnattr_setflags(void *attributes, short flags)')
const setDefault = libc.func('int posix_spawnattr_setsigdefault(void *attributes, void *signals)')
const setMask = libc.func('int posix_spawnattr_setsigmask(void *attributes, void *signals)')
const socketpair = libc.func('int socketpair(int domain, int type, int protocol, void *pair)')
const waitpid = libc.func('int waitpid(int pid, _Out_ int *status, int options)')
const closeDescriptor = libc.func('int close(int fd)')

const AF_UNIX = 1
const SOCK_STREAM = 1
const SOCK_CLOEXEC = 0o2000000
const SETSIGDEF = 4
const SETSIGMASK = 8
const WNOHANG = 1
/** glibc's structures of file actions, attributes and sets of signals have fewer. */
const STRUCTURE_BYTES = 512
/** A command that prints more is killed. */
const MAX_OUTPUT_BYTES = 64 * 2 ** 20

export interface LightOptions {
  readonly cwd: string | undefined
  readonly env: NodeJS.ProcessEnv
  readonly input: string | Buffer | undefined
}

/** A command that runs. */
export interface LightProcess {
  kill(signal: NodeJS.Signals): void
  /** Resolves once it has ended and nobody can write to its output any more. */
  readonly ended: Promise<LightEnd>
}

export interface LightEnd {
  /** Undefined when a signal has ended it. */
  readonly code: number | undefined
  readonly signal: number
  readonly stdout: Buffer
  readonly stderr: Buffer
}

/** What waits for each command to end, by its process id. */
const living = new Map<number, (status: number) => void>()

/** Node waits only for processes that it has started itself. */
function reap(): void {
  for (const [pid, tell] of living) {
    const status = [0]
    if (waitpid(pid, status, WNOHANG) === 0) continue
    living.delete(pid)
    tell(status[0] as number)
  }
}

let attributes: Buffer | undefined

/** Returns attributes that give a command default signals, none of them blocked, as Node does. */
function defaultSignals(): Buffer {
  if (attributes) return attributes
  process.on('SIGCHLD', reap)
  attributes = Buffer.alloc(STRUCTURE_BYTES)
  initAttributes(attributes)
  setFlags(attributes, SETSIGDEF | SETSIGMASK)
  setDefault(attributes, Buffer.alloc(STRUCTURE_BYTES, 0xff))
  setMask(attributes, Buffer.alloc(STRUCTURE_BYTES))
  return attributes
}

/** Starts a command; throws if that fails. */
export function spawnLight(
  command: string,
  args: readonly string[],
  { cwd, env, input }: LightOptions,
): LightProcess {
  const signals = defaultSignals()
  const path = pathOf(command, env)
  const actions = Buffer.alloc(STRUCTURE_BYTES)
  initActions(actions)
  const ours: number[] = []
  const theirs: number[] = []
  for (const fd of [0, 1, 2]) {
    if (fd === 0 && input === undefined) {
      addOpen(actions, 0, '/dev/null', constants.O_RDONLY, 0)
      continue
    }
    const pair = Buffer.alloc(8)
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) !== 0) throw failure('socketpair')
    ours.push(pair.readInt32LE(0))
    theirs.push(pair.readInt32LE(4))
    addDup2(actions, pair.readInt32LE(4), fd)
  }
  if (cwd !== undefined) addChdir(actions, cwd)
  const environment = Object.entries(env).flatMap(([name, value]) =>
    value === undefined ? [] : [`${name}=${value}`],
  )
  const pid = [0]
  const error = posixSpawn(
    pid,
    path,
    actions,
    signals,
    [command, ...args, null],
    [...environment, null],
  )
  destroyActions(actions)
  for (const fd of theirs) closeDescriptor(fd)
  if (error !== 0) {
    for (const fd of ours) closeDescriptor(fd)
    throw failure(`${command}${cwd === undefined ? '' : ` in ${cwd}`}`, error)
  }
  return running(pid[0] as number, ours, input)
}

function running(pid: number, sockets: number[], input: string | Buffer | undefined): LightProcess {
  const exited = new Promise<number>(resolve => {
    living.set(pid, resolve)
  })
  const kill = (signal: NodeJS.Signals) => {
    // The id is its own as long as nobody has waited for it.
    if (living.has(pid)) process.kill(pid, signal)
  }
  const streams = sockets.map(fd => new Socket({ fd, readable: true, writable: true }))
  const [stdout, stderr] = streams
    .slice(-2)
    .map(stream => textOf(stream, () => kill('SIGKILL'))) as [Promise<Buffer>, Promise<Buffer>]
  if (input !== undefined) {
    const [stdin] = streams as [Socket]
    // It is no error if a command does not read its input to the end.
    stdin.on('error', () => {})
    stdin.end(input)
    void exited.then(() => stdin.destroy())
  }
  const end = async () => {
    const [status, out, err] = await Promise.all([exited, stdout, stderr])
    const signal = status & 0x7f
    return {
      code: signal === 0 ? (status >> 8) & 0xff : undefined,
      signal,
      stdout: out,
      stderr: err,
    }
  }
  return { kill, ended: end() }
}

function textOf(stream: Socket, stop: () => void): Promise<Buffer> {
  const parts: Buffer[] = []
  let bytes = 0
  return new Promise(resolve => {
    stream.on('data', part => {
      parts.push(part)
      bytes += part.length
      if (bytes <= MAX_OUTPUT_BYTES) return
      stop()
      stream.destroy()
    })
    stream.on('error', () => {})
    stream.once('close', () => resolve(Buffer.concat(parts)))
  })
}

/** Finds a command as execvp(3) does. */
function pathOf(command: string, { PATH = '' }: NodeJS.ProcessEnv): string {
  if (command.includes('/')) return command
  for (const folder of PATH.split(delimiter)) {
    const path = join(folder, command)
    if (isProgram(path)) return path
  }
  throw failure(command, os.errno.ENOENT)
}

function isProgram(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return statSync(path).isFile()
  } catch {
    return false
  }
}

const failure = (what: string, errno: number = koffi.errno()): Error => {
  const name = Object.entries(os.errno).find(([, number]) => number === errno)?.[0] ?? errno
  return new Error(`cannot start ${what}: ${name}`)
}
