/**
 * The folders in which servers have their sockets. Only their user may enter such a folder. It is held open while names in it
 * are used, so nobody can put another one in its place, and a path of any length fits the 108 bytes of a socket's address.
 */
import fs from 'node:fs'
import path from 'node:path'
import { inWords } from '../errors.js'
import { list } from '../io/processes.js'

const NAME = 'vimgfs'
const { O_DIRECTORY, O_NOFOLLOW, O_RDONLY } = fs.constants
const GROUP_AND_OTHERS = 0o077

export interface SocketFolder {
  readonly path: string
  /** Its owner. */
  readonly uid: number
  /** Returns a path of a name in it, short enough for a socket's address. */
  at(name: string): string
  names(): string[]
  close(): void
}

/** Returns the folders that a server of the user `uid` may use, the best first. */
export function candidates(uid: number, env: NodeJS.ProcessEnv = process.env): string[] {
  const given = env.XDG_RUNTIME_DIR ?? ''
  // An empty or relative value counts as unset (XDG Base Directory Specification).
  const runtime = path.isAbsolute(given) ? [path.join(given, NAME)] : []
  const last = `/tmp/${NAME}-${uid}`
  // With sudo, root has the variable of another user.
  if (uid === 0) return [`/run/${NAME}`, ...runtime, last]
  return [...new Set([...runtime, `/run/user/${uid}/${NAME}`, last])]
}

/**
 * Returns the first of `paths` that exists or can be made, with nobody else's rights in it; or why none of them can.
 */
export function openForServer(paths: readonly string[], uid: number): SocketFolder | string {
  const failures: string[] = []
  for (const folder of paths) {
    try {
      // The runtime directory is the user's own, and made by somebody else.
      fs.mkdirSync(folder, { mode: 0o700 })
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code !== 'EEXIST') failures.push(`${folder}: ${inWords(error)}`)
      if (code !== 'EEXIST') continue
    }
    const opened = openFolder(folder, uid)
    if (typeof opened !== 'string') return opened
    failures.push(`${folder}: ${opened}`)
  }
  return failures.join('; ')
}

/** Returns the folders that exist in which a command of the user `uid` looks for servers. Root looks in those of all users. */
export function openForCommand(uid: number): SocketFolder[] {
  const own = candidates(uid)
  const others =
    uid === 0
      ? [
          ...list('/run/user').map(user => `/run/user/${user}/${NAME}`),
          ...list('/tmp')
            .filter(name => /^vimgfs-[0-9]+$/.test(name))
            .map(name => `/tmp/${name}`),
        ]
      : []
  return [...new Set([...own, ...others])].flatMap(folder => {
    const opened = openFolder(folder, uid === 0 ? undefined : uid)
    return typeof opened === 'string' ? [] : [opened]
  })
}

/**
 * Opens a folder of sockets without following a link. Returns why it cannot be used.
 * @param uid the user who must own it; undefined for any user
 */
export function openFolder(folder: string, uid: number | undefined): SocketFolder | string {
  let fd: number
  try {
    fd = fs.openSync(folder, O_RDONLY | O_DIRECTORY | O_NOFOLLOW)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    return code === 'ELOOP' || code === 'ENOTDIR' ? 'it is not a folder' : inWords(error)
  }
  const why = obstacleOf(fd, uid)
  if (why === undefined) return held(folder, fd)
  fs.closeSync(fd)
  return why
}

function obstacleOf(fd: number, uid: number | undefined): string | undefined {
  const stat = fs.fstatSync(fd)
  if (uid !== undefined && stat.uid !== uid) return 'it belongs to another user'
  if ((stat.mode & GROUP_AND_OTHERS) === 0) return undefined
  if (stat.uid !== process.geteuid?.()) return 'other users may enter it'
  try {
    fs.fchmodSync(fd, 0o700)
    return undefined
  } catch (error) {
    return inWords(error)
  }
}

const held = (folder: string, fd: number): SocketFolder => ({
  path: folder,
  uid: fs.fstatSync(fd).uid,
  at: name => `/proc/self/fd/${fd}/${name}`,
  names: () => list(`/proc/self/fd/${fd}`),
  close: () => fs.closeSync(fd),
})
