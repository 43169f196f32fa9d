/**
 * QEMU's image locks (block/file-posix.c, raw_check_perm), so that a running machine and vimgfs never write the same
 * image, nor two servers of vimgfs.
 *
 * They are shared locks on single bytes of the file: byte 100 + n says "I do n", byte 200 + n says "nobody else may do
 * n", for the n below. A program that opens the image takes its own locks first, and then looks whether another one holds
 * the opposite of one of them: if two come at once, both see it. The locks belong to the open file description and end
 * with its last descriptor, however the process ends.
 */
import { constants } from 'node:os'
import { errnoName, ImageInUse } from '../errors.js'
import { errno, isLockedByOthers, lockShared } from './libc.js'
import { list, processIds, processName, textOf } from './processes.js'

const READ = 0
const WRITE = 1
const RESIZE = 3
const DOES_AT = 100
const FORBIDS_AT = 200

/** The actions of a program on an image, and those that it forbids to others meanwhile. */
const HOLDS = {
  read: { does: [READ], forbids: [WRITE, RESIZE] },
  write: { does: [READ, WRITE, RESIZE], forbids: [WRITE, RESIZE] },
}

/** Reports whether another program may write the file, so that it may change while it is read. */
export const isWrittenByOthers = (fd: number): boolean => isLockedByOthers(fd, DOES_AT + WRITE)

const { EACCES, EAGAIN } = constants.errno

/**
 * Locks the file for as long as `fd` is open. Returns a warning for the user if its file system has no such locks. Throws
 * ImageInUse if another program's locks forbid it.
 */
export function lockImage(
  fd: number,
  file: string,
  purpose: keyof typeof HOLDS,
): string | undefined {
  const { does, forbids } = HOLDS[purpose]
  for (const at of [...does.map(n => DOES_AT + n), ...forbids.map(n => FORBIDS_AT + n)]) {
    if (lockShared(fd, at) === 0) continue
    const reason = errno()
    if (reason === EAGAIN || reason === EACCES) throw inUse(fd, file, purpose, [at])
    return `${file}: its file system has no locks (${errnoName(reason)}): nothing keeps a running machine or another mount from writing it, too`
  }
  const opposite = [...does.map(n => FORBIDS_AT + n), ...forbids.map(n => DOES_AT + n)]
  const held = opposite.filter(at => isLockedByOthers(fd, at))
  if (held.length > 0) throw inUse(fd, file, purpose, held)
  return undefined
}

function inUse(fd: number, file: string, purpose: string, held: readonly number[]): ImageInUse {
  const isWritten = isWrittenByOthers(fd)
  const holders = holdersOf(fd, held)
  const who = holders.length > 0 ? holders.map(processName).join(' and ') : 'another program'
  const find = holders.length > 0 ? '' : `find it with fuser ${file} or lsof, and `
  // A program that only reads excludes writers, but would let us read.
  const wayOut = isWritten ? 'read it as it is with -o ro,force-share' : 'mount it with -o ro'
  const act = isWritten ? 'writes' : purpose === 'read' ? 'has locked' : 'reads'
  const context = { path: file, hint: `${find}end that, or ${wayOut}` }
  return new ImageInUse(`it is in use: ${who} ${act} it`, holders, context)
}

const MAX_NAMED = 3

/**
 * Returns the processes that hold a lock on one of the bytes `at`, as far as this user may see. It reads the locks of each
 * descriptor from /proc and touches no file: a file may lie on a mount that hangs.
 */
function holdersOf(fd: number, at: readonly number[]): number[] {
  const file = locksOf('self', String(fd))[0]?.file
  if (file === undefined) return []
  const found: number[] = []
  for (const pid of processIds()) {
    if (pid === process.pid) continue
    const holds = list(`/proc/${pid}/fd`).some(other =>
      locksOf(pid, other).some(
        lock => lock.file === file && at.some(byte => lock.start <= byte && byte <= lock.end),
      ),
    )
    if (holds) found.push(pid)
    if (found.length === MAX_NAMED) break
  }
  return found
}

interface Lock {
  /** The device and inode of the locked file, as the kernel writes them. */
  readonly file: string
  readonly start: number
  readonly end: number
}

/** Returns the locks of a descriptor (proc(5), fdinfo): "lock:\t1: OFDLCK  ADVISORY  READ -1 fe:00:42 101 101". */
function locksOf(pid: number | 'self', fd: string): Lock[] {
  const text = textOf(`/proc/${pid}/fdinfo/${fd}`) ?? ''
  return [...text.matchAll(/^lock:.* (\S+:\S+:\d+) (\d+) (\d+|EOF)$/gm)].map(match => {
    const [, file = '', start, end] = match
    return { file, start: Number(start), end: end === 'EOF' ? Infinity : Number(end) }
  })
}
