/**
 * Opening what lies below a folder that is held open. The path of a folder may lead elsewhere at any
 * moment; its descriptor does not. The kernel resolves the names and refuses every step that leaves the
 * folder (openat2(2), RESOLVE_BENEATH). Where it lacks or forbids that call, the names are resolved here,
 * one component at a time.
 *
 * Files are opened with O_PATH first, which has no effect on them. Only what turns out to be a regular file
 * is opened in earnest, by that same descriptor: no FIFO and no device is ever opened.
 */
import fs from 'node:fs'
import { constants } from 'node:os'
import { SystemError } from '../errors.js'
import { closeFile, errno, O_PATH, openAt, openAt2, readLink } from './libc.js'

const { O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK } = fs.constants
const { EACCES, EAGAIN, ELOOP, ENOSYS, ENOTDIR, EPERM, EXDEV } = constants.errno

const RESOLVE_NO_MAGICLINKS = 0x02
const RESOLVE_BENEATH = 0x08

/** Symbolic links on the way to one file, as in the kernel. */
export const MAX_LINKS = 40
/** The kernel says EAGAIN where something was moved while it resolved a `..`. */
const MAX_ATTEMPTS = 100

/** Opens a name below the folder `folder`: an O_PATH descriptor for `closeFile`, or -1 with errno set. */
type OpenBelow = (folder: number, name: Buffer) => number

/**
 * An opener that asks `byKernel` until that turns out to be missing (ENOSYS) or forbidden (EPERM, as
 * seccomp filters say), and resolves names by hand from then on. It throws SystemError; EXDEV means that
 * the name leads out of the folder.
 */
export function opener(byKernel: OpenBelow): (folder: number, name: Buffer) => number {
  let isMissing = false
  return (folder, name) => {
    for (let attempt = 0; !isMissing && attempt < MAX_ATTEMPTS; attempt++) {
      const fd = byKernel(folder, name)
      if (fd >= 0) return fd
      const error = errno()
      if (error === ENOSYS || error === EPERM) isMissing = true
      else if (error !== EAGAIN) throw new SystemError('openat2', error)
    }
    return walk(folder, name)
  }
}

/** Opens `name`, relative to the folder `folder`, for looking only. See {@link opener}. */
export const openBeneath = opener((folder, name) =>
  openAt2(folder, name, O_PATH, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS),
)

/**
 * The same by hand. `..` goes back to the folder that was passed on the way down, so what is moved
 * meanwhile cannot lead out. Throws SystemError.
 */
function walk(folder: number, name: Buffer): number {
  const trail = [stepInto(folder, '.', true)]
  try {
    const rest = partsOf(name)
    for (let links = 0; ; ) {
      const part = rest.shift()
      if (part === undefined) return trail.pop() as number
      if (part === '..') {
        closeFile(trail.pop() as number)
        if (trail.length === 0) throw new SystemError('openat', EXDEV)
        continue
      }
      const above = trail.at(-1) as number
      const fd = stepInto(above, part, rest.length > 0)
      trail.push(fd)
      const stat = fs.fstatSync(fd)
      if (stat.isSymbolicLink()) {
        if (++links > MAX_LINKS) throw new SystemError('openat', ELOOP)
        requireFollowable(stat, above)
        rest.unshift(...partsOf(readLink(fd)))
        closeFile(trail.pop() as number)
      } else if (rest.length > 0 && !stat.isDirectory()) {
        throw new SystemError('openat', ENOTDIR)
      }
    }
  } finally {
    for (const fd of trail) closeFile(fd)
  }
}

/** Its components as bytes, in latin1. Throws SystemError where it does not start in the folder. */
function partsOf(name: Buffer): string[] {
  const text = name.toString('latin1')
  if (text.startsWith('/')) throw new SystemError('openat', EXDEV)
  return text.split('/').filter(part => part !== '' && part !== '.')
}

/** @param isPassed whether more follows: O_DIRECTORY makes the kernel mount what is mounted on demand */
function stepInto(folder: number, part: string, isPassed: boolean): number {
  const name = Buffer.from(part, 'latin1')
  const flags = O_PATH | O_NOFOLLOW
  let fd = openAt(folder, name, isPassed ? flags | O_DIRECTORY : flags)
  if (fd < 0 && errno() === ENOTDIR) fd = openAt(folder, name, flags)
  if (fd < 0) throw new SystemError('openat', errno())
  return fd
}

const S_ISVTX = 0o1000
const S_IWOTH = 0o002

/** In a folder like /tmp the kernel follows nobody's link but one's own (fs.protected_symlinks). */
function requireFollowable(link: fs.Stats, folder: number): void {
  const { mode, uid } = fs.fstatSync(folder)
  const isShared = (mode & S_ISVTX) !== 0 && (mode & S_IWOTH) !== 0
  if (isShared && link.uid !== uid && link.uid !== process.geteuid?.()) {
    throw new SystemError('openat', EACCES)
  }
}

/** The path by which the file that `fd` was opened for is opened again, whatever its name leads to now. */
export const pathOfDescriptor = (fd: number): string => `/proc/self/fd/${fd}`

/**
 * Opens the regular file `name`, directly in the folder `folder`, for reading: a descriptor for
 * `fs.closeSync`. Undefined where it is anything else, a symbolic link included. Throws SystemError.
 */
export function openPlain(folder: number, name: Buffer): number | undefined {
  const place = openAt(folder, name, O_PATH | O_NOFOLLOW)
  if (place < 0) throw new SystemError('openat', errno())
  try {
    if (!fs.fstatSync(place).isFile()) return undefined
    return fs.openSync(pathOfDescriptor(place), O_NONBLOCK)
  } finally {
    closeFile(place)
  }
}
