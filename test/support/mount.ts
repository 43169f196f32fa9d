/**
 * Mounts for tests, and the places that commands run in.
 *
 *  (1) Whatever touches a mount runs in another process, with a limit: a server that hangs must not
 *      hang the tests.
 *  (2) Every mount and every server ends with its test, however the test ends.
 *  (3) Nothing of the machine changes: who needs another /dev/fuse or fuse.conf gets a mount
 *      namespace, and mounts in there are seen in there only.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createRequire } from 'node:module'
import {
  accessSync,
  chmodSync,
  chownSync,
  constants,
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import type { Test } from 'tap'
import type { Transport } from '../../src/fs/session.js'
import { callIn } from './caller.js'
import { endKept } from './kept-processes.js'
import { isKept, runKept } from './kept-commands.js'
import { attempt, type Finished, type RunOptions, tempFolder } from './run.js'
import { until } from './until.js'

export { until }

export const MAIN = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url))
const TARGET = '--target='
const NOBODY = 65534
/** How many words of a namespace's prefix belong to nsenter. */
const NSENTER_WORDS = 4

export const isRoot = process.getuid?.() === 0

/** Where, and as which user, commands run. */
export interface Place {
  /** For titles. */
  readonly name: string
  readonly uid: number
  /** The words before a command; the last ones are env and its options. */
  readonly prefix: readonly string[]
  readonly env?: NodeJS.ProcessEnv
  /** The transport of mounts; direct by default. */
  readonly transport?: Transport
}

/** Removes tap's loaders from the environment: they would write where other users may not. */
const PLAIN = ['env', '--unset=NODE_OPTIONS']

/** This machine, as the user who runs the tests. */
export const HERE: Place = {
  name: isRoot ? 'root' : 'ordinary user',
  uid: process.getuid?.() ?? 0,
  prefix: PLAIN,
}

/** Returns the same place with the libfuse transport. */
export const overLibfuse = (place: Place): Place => ({
  ...place,
  name: `${place.name}, libfuse`,
  transport: 'libfuse',
})

/** Returns places for the user who runs the tests and for an ordinary user, by each transport that is available. */
export async function everyPlace(t: Test): Promise<Place[]> {
  const places = isRoot ? [HERE, await ordinaryUser(t)] : [HERE]
  return noLibfuse().skip ? places : [...places, ...places.map(overLibfuse)]
}

export interface NamespaceOptions {
  /** Lines of /etc/fuse.conf. */
  readonly fuseConf?: string
  /** The mode of /dev/fuse; by default all users may use it. */
  readonly deviceMode?: number | 'missing'
  /** The id of the ordinary user and of its group: of one whom only this namespace knows. By default nobody's. */
  readonly uid?: number
}

/** Makes a mount namespace that lasts until the test ends. Needs root. */
export async function namespace(
  t: Test,
  { fuseConf = '', deviceMode = 0o666, uid = NOBODY }: NamespaceOptions = {},
): Promise<{ root: Place; user: Place }> {
  const folder = sharedFolder(t)
  const conf = join(folder, 'fuse.conf')
  writeFileSync(conf, fuseConf, { mode: 0o644 })
  const device = join(folder, 'fuse')
  const users = join(folder, 'passwd')
  const user = `tester:x:${uid}:${uid}::${folder}:/bin/sh\n`
  if (uid !== NOBODY) writeFileSync(users, `${readFileSync('/etc/passwd', 'utf8')}${user}`)
  const script = [
    'set -e',
    letGo(),
    `mount --bind ${conf} /etc/fuse.conf`,
    // fusermount3 wants a name.
    ...(uid === NOBODY ? [] : [`mount --bind ${users} /etc/passwd`]),
    ...(deviceMode === 'missing'
      ? [
          `mkdir ${folder}/dev`,
          `mknod -m 666 ${folder}/dev/null c 1 3`,
          `mount --bind ${folder}/dev /dev`,
        ]
      : [
          `mknod -m ${deviceMode.toString(8)} ${device} c 10 229`,
          `mount --bind ${device} /dev/fuse`,
        ]),
    'echo ready',
    // It ends with this process, and the namespace ends with it.
    'exec cat',
  ].join('\n')
  const holder = spawn('unshare', ['--mount', '--propagation', 'private', 'sh', '-c', script])
  const ended = once(holder, 'close')
  t.teardown(async () => {
    await endKept(`${TARGET}${holder.pid}`)
    holder.stdin.end()
    await ended
  })
  const [text] = await Promise.race([once(holder.stdout, 'data'), ended])
  if (String(text).trim() !== 'ready') throw new Error(`no mount namespace: ${text}`)

  const prefix = ['nsenter', `${TARGET}${holder.pid}`, '--mount', '--']
  const drop = ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups']
  const env = { HOME: folder, XDG_STATE_HOME: folder }
  return {
    root: { name: 'root', uid: 0, prefix: [...prefix, ...PLAIN] },
    user: { name: 'ordinary user', uid, prefix: [...prefix, ...drop, ...PLAIN], env },
  }
}

/**
 * A line of shell for a new mount namespace, which begins with a copy of all mounts. Those of tests that run
 * beside this one would live on in it: their servers would not end, and their devices stay busy.
 * @param kept a mount point that it keeps
 */
export const letGo = (kept = ''): string =>
  `awk '($3 ~ /^fuse/ || $1 ~ /^.dev.loop/) && $2 != "${kept}" { print $2 }' /proc/self/mounts | tac | while read -r mount; do umount -l "$mount" || true; done`

/** Returns an ordinary user who may use FUSE: the one who runs the tests, or the user nobody if that is root. */
export async function ordinaryUser(t: Test): Promise<Place> {
  return isRoot ? (await namespace(t)).user : HERE
}

/** Returns why ordinary users cannot mount here, for a test's `skip`. Root can always make it possible. */
export function noFuse(): { skip?: string } {
  if (isRoot || process.env.CI === 'true') return {}
  try {
    accessSync('/dev/fuse', constants.R_OK | constants.W_OK)
    return existsSync('/usr/bin/fusermount3') ? {} : { skip: 'needs fusermount3' }
  } catch {
    return { skip: 'needs access to /dev/fuse' }
  }
}

/** Returns why libfuse cannot mount here, for a test's `skip`: its package is optional. */
export function noLibfuse(): { skip?: string } {
  if (process.env.CI === 'true') return {}
  try {
    createRequire(import.meta.url).resolve('fuse-native')
    return noFuse()
  } catch {
    return { skip: 'needs the package fuse-native' }
  }
}

/** Makes a folder that all users may enter and write to. */
export function sharedFolder(t: Test): string {
  const folder = tempFolder(t)
  chmodSync(folder, 0o777)
  return folder
}

/** Copies the repository's sample: the tests of `npm start` mount the original. */
export function sampleImage(t: Test): string {
  const image = join(sharedFolder(t), 'disk.qcow2')
  copyFileSync(new URL('../../samples/disk.qcow2', import.meta.url), image)
  return image
}

export function attemptIn(
  place: Place,
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<Finished> {
  const { cwd, ...others } = options
  // A prefix ends with env. nsenter changes the current folder to the root.
  const folder = cwd === undefined ? [] : [`--chdir=${cwd}`]
  const [first = command, ...rest] = [...place.prefix, ...folder, command]
  return attempt(first, [...rest, ...args], { ...others, env: { ...place.env, ...options.env } })
}

/** Runs a command that must succeed; resolves to what it printed. */
export async function runIn(
  place: Place,
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  const { code, stdout, stderr } = await attemptIn(place, command, args, options)
  if (code !== 0) throw new Error(`${command} ${args.join(' ')}: exit ${code}\n${stderr}${stdout}`)
  return stdout
}

/** For tests of reading, and of images that others use at the same time. */
export const READ_ONLY = ['-o', 'ro']

/** So that root's servers leave no /var/log/vimgfs.log behind. */
export const NO_LOG = ['--log-file', '/dev/null']

/** Returns the words of a vimgfs command for this place. */
export const wordsOf = ({ transport }: Place, args: readonly string[]): string[] =>
  transport && args[0] === 'mount'
    ? [MAIN, 'mount', '--transport', transport, ...args.slice(1)]
    : [MAIN, ...args]

/** Arguments that need a launch: a kept process has no terminal and nothing to read, and serves no mount itself. */
const NEEDS_LAUNCH = new Set(['-f', '--foreground', '-', '-h', '--help'])

/**
 * Does what the command `vimgfs` does, where it can in a process that is kept for the next command: without the start of Node,
 * which takes most of the time. Servers start as ever. Tests of how a command starts, ends or is interrupted use `launched`.
 */
export function vimgfs(
  place: Place,
  args: readonly string[],
  options: RunOptions = {},
): Promise<Finished> {
  const { input, cwd, env } = options
  if (input !== undefined || !isKept(args[0]) || args.some(arg => NEEDS_LAUNCH.has(arg))) {
    return launched(place, args, options)
  }
  return runKept(place.prefix, { ...place.env, ...env }, wordsOf(place, args), cwd)
}

/** Returns what `vimgfs umount` has printed without the lines that say, on a slow machine, what it waits for. */
export const withoutNotices = (stderr: string): string =>
  stderr.replace(/^vimgfs: .*\bwaiting for .*\n/gm, '')

/** Runs the command `vimgfs` in a process of its own. */
export const launched = (
  place: Place,
  args: readonly string[],
  options: RunOptions = {},
): Promise<Finished> => attemptIn(place, process.execPath, wordsOf(place, args), options)

/** Runs a function of calls.mjs in another process. */
export const call = (place: Place, name: string, ...args: (string | number)[]): Promise<any> =>
  callIn(place.prefix, place.env, name, args)

export interface Mount {
  readonly place: Place
  readonly folder: string
  /** The server's process id. */
  readonly pid: number
  readonly logFile: string
  /** What `vimgfs mount` printed. */
  readonly printed: Finished
  /** Returns the path of a file of the mount. */
  file(name: string): string
  log(): string
}

/** Makes an empty mount point that belongs to `place`'s user. It is unmounted when the test ends. */
export function mountFolder(t: Test, place: Place = HERE, name = 'mnt'): string {
  const folder = join(sharedFolder(t), name)
  mkdirSync(folder)
  if (isRoot) chownSync(folder, place.uid, place.uid)
  t.teardown(() => endMount(place, folder))
  return folder
}

/** Mounts `image` until the test ends. */
export async function mount(
  t: Test,
  image: string,
  options: { place?: Place; args?: readonly string[]; folder?: string } = {},
): Promise<Mount> {
  const { place = HERE, args = [], folder = mountFolder(t, place) } = options
  const logFile = join(folder, '..', 'log')
  const printed = await vimgfs(place, ['mount', '--log-file', logFile, ...args, image, folder])
  if (printed.code !== 0) throw new Error(`vimgfs mount: exit ${printed.code}\n${printed.stderr}`)
  const [pid = -1] = serversOf(folder)
  return {
    place,
    folder,
    pid,
    logFile,
    printed,
    file: name => join(folder, name),
    log: () => (existsSync(logFile) ? readFileSync(logFile, 'utf8') : ''),
  }
}

/** Applies rule (2). The folder's name is unique, so all processes with it belong to this test. */
async function endMount(place: Place, folder: string): Promise<void> {
  for (const pid of serversOf(folder)) kill(pid, 'SIGKILL')
  const asRoot = { ...place, prefix: isRoot ? place.prefix.slice(0, NSENTER_WORDS) : place.prefix }
  while (await isMounted(place, folder)) {
    const command = isRoot ? ['umount', '-l', folder] : ['fusermount3', '-u', '-z', folder]
    const { code } = await attemptIn(asRoot, command[0]!, command.slice(1))
    if (code !== 0) break
  }
}

/** Returns the processes of vimgfs that serve `folder`, or will. */
export function serversOf(folder: string): number[] {
  return readdirSync('/proc')
    .filter(name => /^[0-9]+$/.test(name))
    .map(Number)
    .filter(pid => {
      try {
        const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')
        return words.includes(MAIN) && words.includes('mount') && words.includes(folder)
      } catch {
        return false
      }
    })
}

export function kill(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(pid, signal)
  } catch {
    // It has ended by itself.
  }
}

/** Reports whether something is mounted on `folder`. Reads only the list of mounts: the mount may hang. */
export async function isMounted(place: Place, folder: string): Promise<boolean> {
  // Of the namespace that the place is in.
  const target = place.prefix.find(word => word.startsWith(TARGET))?.slice(TARGET.length)
  try {
    return readFileSync(`/proc/${target ?? 'self'}/mounts`, 'utf8').includes(` ${folder} `)
  } catch {
    // A namespace that has ended has no mounts.
    return false
  }
}

/** Waits until a process has ended; says where it hangs if it does not. */
export async function hasEnded(t: Test, pid: number): Promise<boolean> {
  if (await until(() => !isRunning(pid))) return true
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    const about = (name: string) => readFileSync(`/proc/${pid}/task/${thread}/${name}`, 'utf8')
    try {
      t.comment(`thread ${thread}: ${about('wchan')} ${about('syscall')}${about('stack')}`)
    } catch {
      // It has ended meanwhile, or is not ours to look into.
    }
  }
  return false
}

/**
 * A process that has ended but that nobody has waited for does not run. As long as another of its threads is in a system call, it
 * still has its files, and so its locks.
 */
export function isRunning(pid: number): boolean {
  try {
    const isEnded = /^State:\tZ/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'))
    return !isEnded || readdirSync(`/proc/${pid}/task`).length > 1
  } catch {
    return false
  }
}
