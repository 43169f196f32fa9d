/**
 * Opens files below a folder that is held open. The path of a folder may lead elsewhere at any moment; its descriptor
 * does not. The kernel resolves the names and refuses every step that leaves the folder (openat2(2), RESOLVE_BENEATH).
 * Where the kernel lacks or forbids that call, the names are resolved here, one component at a time.
 *
 * Files are opened with O_PATH first, which has no effect on them. Only a regular file is then really opened, through
 * that same descriptor: no FIFO and no device is ever opened.
 */
import fs from 'node:fs'
import { constants } from 'node:os'
import { SystemError } from '../errors.js'
import { closeFile, errno, O_PATH, openAt, openAt2, readLink } from './libc.js'

const { O_DIRECTORY, O_NOFOLLOW, O_NONBLOCK } = fs.constants
const { EACCES, EAGAIN, ELOOP, ENOSYS, ENOTDIR, EPERM, EXDEV } = constants.errno

const RESOLVE_NO_MAGICLINKS = 0x02
const RESOLVE_BENEATH = 0x08

/** The largest number of symbolic links on the way to one file, as in the kernel. */
export const MAX_LINKS = 40
/** How often to try again. The kernel answers EAGAIN if something was moved while it resolved a `..`. */
const MAX_ATTEMPTS = 100

/** Opens a name below the folder `folder`. Returns an O_PATH descriptor for `closeFile`, or -1 with errno set. */
type OpenBelow = (folder: number, name: Buffer) => number

/**
 * Returns an opener that calls `byKernel` until that turns out to be missing (ENOSYS) or forbidden (EPERM, from seccomp
 * filters), and resolves names by hand from then on. The opener throws SystemError; EXDEV means that the name leads out
 * of the folder.
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

/** Opens `name`, relative to the folder `folder`, with O_PATH. See {@link opener}. */
export const openBeneath = opener((folder, name) =>
  openAt2(folder, name, O_PATH, RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS),
)

/**
 * Does the same by hand. `..` goes back to the folder that was passed on the way down, so moving a folder meanwhile
 * cannot lead out. Throws SystemError.
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

/** Returns the components of `name`, each byte as a latin1 character. Throws SystemError if the name is absolute. */
function partsOf(name: Buffer): string[] {
  const text = name.toString('latin1')
  if (text.startsWith('/')) throw new SystemError('openat', EXDEV)
  return text.split('/').filter(part => part !== '' && part !== '.')
}

/** @param isPassed whether more components follow: O_DIRECTORY makes the kernel mount what autofs mounts on demand */
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

/** Throws where the kernel would not follow a link: in a folder like /tmp only one's own (fs.protected_symlinks). */
function requireFollowable(link: fs.Stats, folder: number): void {
  const { mode, uid } = fs.fstatSync(folder)
  const isShared = (mode & S_ISVTX) !== 0 && (mode & S_IWOTH) !== 0
  if (isShared && link.uid !== uid && link.uid !== process.geteuid?.()) {
    throw new SystemError('openat', EACCES)
  }
}

/** Returns a path that opens the file of `fd` again, whatever its name leads to now. */
export const pathOfDescriptor = (fd: number): string => `/proc/self/fd/${fd}`

/**
 * Opens the regular file `name`, directly in the folder `folder`, for reading. Returns a descriptor for `fs.closeSync`,
 * or undefined if it is anything else, such as a symbolic link. Throws SystemError.
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
