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
}

/** A command that runs, and its standard input and output. */
export interface LightProcess {
  readonly stdin: Socket | undefined
  readonly stdout: Socket
  /** Undefined where it is that of this process. */
  readonly stderr: Socket | undefined
  kill(signal: NodeJS.Signals): void
  /** Resolves to its wait status (wait(2)) once it has ended. */
  readonly exited: Promise<number>
}

/** A command that runs to its end. */
export interface LightCommand {
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

/** The functions to call when a command ends, by its process id. */
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

/** Starts a command, and collects what it prints. Throws if it cannot be started. */
export function runLight(
  command: string,
  args: readonly string[],
  { input, ...options }: LightOptions & { readonly input: string | Buffer | undefined },
): LightCommand {
  const stdin = input === undefined ? 'null' : 'socket'
  const started = spawnLight(command, args, { ...options, stdin, stderr: 'socket' })
  const stop = () => started.kill('SIGKILL')
  const outputs = [started.stdout, started.stderr as Socket].map(stream => textOf(stream, stop))
  if (started.stdin && input !== undefined) endWith(started.stdin, input, started.exited)
  const end = async () => {
    const [status, stdout, stderr] = await Promise.all([
      started.exited,
      ...(outputs as [Promise<Buffer>, Promise<Buffer>]),
    ])
    const signal = status & 0x7f
    return { code: signal === 0 ? (status >> 8) & 0xff : undefined, signal, stdout, stderr }
  }
  return { kill: started.kill, ended: end() }
}

/** Hands `input` to a command. It is no error if the command does not read it to the end. */
function endWith(stdin: Socket, input: string | Buffer, exited: Promise<number>): void {
  stdin.on('error', () => {})
  stdin.end(input)
  void exited.then(() => stdin.destroy())
}

/** Starts a command; throws if that fails. */
export function spawnLight(
  command: string,
  args: readonly string[],
  {
    cwd,
    env,
    stdin,
    stderr,
  }: LightOptions & { readonly stdin: 'null' | 'socket'; readonly stderr: 'inherit' | 'socket' },
): LightProcess {
  const signals = defaultSignals()
  const path = pathOf(command, env)
  const actions = Buffer.alloc(STRUCTURE_BYTES)
  initActions(actions)
  const ours: (number | undefined)[] = [undefined, undefined, undefined]
  const theirs: number[] = []
  if (stdin === 'null') addOpen(actions, 0, '/dev/null', constants.O_RDONLY, 0)
  for (const fd of [...(stdin === 'socket' ? [0] : []), 1, ...(stderr === 'socket' ? [2] : [])]) {
    const [mine, other] = socketPair()
    ours[fd] = mine
    theirs.push(other)
    addDup2(actions, other, fd)
  }
  if (cwd !== undefined) addChdir(actions, cwd)
  const environment = Object.entries(env).flatMap(([name, value]) =>
    value === undefined ? [] : [`${name}=${value}`],
  )
  const words = [command, ...args, null]
  const pid = [0]
  const error = posixSpawn(pid, path, actions, signals, words, [...environment, null])
  destroyActions(actions)
  for (const fd of theirs) closeDescriptor(fd)
  if (error !== 0) {
    for (const fd of ours) if (fd !== undefined) closeDescriptor(fd)
    throw failure(`${command}${cwd === undefined ? '' : ` in ${cwd}`}`, error)
  }
  return running(pid[0] as number, ours.map(socketOf))
}

const socketOf = (fd: number | undefined): Socket | undefined =>
  fd === undefined ? undefined : new Socket({ fd, readable: true, writable: true })

function running(pid: number, sockets: readonly (Socket | undefined)[]): LightProcess {
  const exited = new Promise<number>(resolve => {
    living.set(pid, resolve)
  })
  const kill = (signal: NodeJS.Signals) => {
    // The id is its own as long as nobody has waited for it.
    if (living.has(pid)) process.kill(pid, signal)
  }
  const [stdin, stdout, stderr] = sockets
  return { stdin, stdout: stdout as Socket, stderr, kill, exited }
}

/** Returns two sockets that are connected; commands inherit neither. */
function socketPair(): [number, number] {
  const pair = Buffer.alloc(8)
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) !== 0) throw failure('a socket')
  return [pair.readInt32LE(0), pair.readInt32LE(4)]
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
