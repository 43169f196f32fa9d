import { constants } from 'node:os'
import { withoutHidden } from './hidden-characters.js'
import { installHint, missingPackage } from './packages.js'

const { EACCES, EINVAL, EIO, ENOENT, EOPNOTSUPP, EPERM, EROFS } = constants.errno
const { ECONNABORTED, ENODEV, ENOTCONN, ESTALE } = constants.errno

const ERRNO = {
  NOT_AN_IMAGE: EINVAL,
  UNSUPPORTED: EOPNOTSUPP,
  CORRUPT: EIO,
  REFUSED: EACCES,
  MISSING: ENOENT,
  READ_ONLY: EROFS,
  NOT_PERMITTED: EPERM,
}
export type ErrorCode = keyof typeof ERRNO

export interface ErrorContext {
  /** The file that is at fault. */
  path?: string
  /** Where on the guest's disk the fault shows, in bytes. */
  offset?: number
  /** Whether going on to write the image would make it worse. */
  endsWriting?: boolean
  /** Whether somebody has made a file of the image shorter since it was opened. */
  isCutOff?: boolean
  /** Whether some thread has reported the same already, so that the log has one line of it. */
  isRepeated?: boolean
  /** What the user can do about it, as the end of a sentence. */
  hint?: string
}

/** What an image file says is wrong or cannot be served. What our own code says cannot be: assert that. */
export class ImageError extends Error {
  override name = 'ImageError'
  constructor(
    readonly code: ErrorCode,
    message: string,
    readonly context: ErrorContext = {},
    options?: ErrorOptions,
  ) {
    super(message, options)
  }
}

/** Others have the image open in a way that excludes what it is opened for. */
export class ImageInUse extends ImageError {
  constructor(
    message: string,
    /** The processes that hold it, as far as they can be seen. */
    readonly holders: readonly number[],
    context: ErrorContext,
  ) {
    super('REFUSED', message, context)
  }
}

/** The command line is wrong: exit code 2. */
export class UsageError extends Error {
  override name = 'UsageError'
}

/** The machine or the mount point is in the way: one line, exit code 1. */
export class MountError extends Error {
  override name = 'MountError'
}

/** This user has mounted the image already: exit code 3. */
export class AlreadyMounted extends MountError {
  override name = 'AlreadyMounted'
}

/** The exit code of a command that `error` ends. */
export function exitCodeOf(error: unknown): number {
  if (error instanceof UsageError) return 2
  return error instanceof AlreadyMounted ? 3 : 1
}

/** The kernel is too old for the direct transport. */
export class ProtocolError extends MountError {
  override name = 'ProtocolError'
}

/** A system call that failed, in the form of Node's own errors but with a positive errno. */
export class SystemError extends Error {
  override name = 'SystemError'
  readonly code: string
  /** Whether what the image's file holds is not known any more. */
  endsWriting = false
  constructor(
    readonly syscall: string,
    readonly errno: number,
    readonly path?: string,
  ) {
    const code = errnoName(errno)
    super(`${syscall}${path === undefined ? '' : ` ${path}`}: ${code}`)
    this.code = code
  }
}

/** Runs `act`; where it fails, nobody knows what the image's file holds, and writing has to end. */
export function orEndWriting<T>(act: () => T): T {
  try {
    return act()
  } catch (error) {
    if (error instanceof SystemError) error.endsWriting = true
    throw error
  }
}

export function errnoName(errno: number): string {
  for (const [name, value] of Object.entries(constants.errno)) if (value === errno) return name
  return `errno ${errno}`
}

const REASONS: Record<string, string> = {
  ENOENT: 'no such file',
  EACCES: 'permission denied',
  EPERM: 'not permitted',
  EROFS: 'its file system is read-only',
  ETXTBSY: 'it is being executed, or is swapped to',
  EISDIR: 'it is a folder',
  ENOTDIR: 'a part of the path is not a folder',
  ELOOP: 'too many symbolic links',
  ENAMETOOLONG: 'the name is too long',
  EMFILE: 'this process may open no more files (ulimit -n)',
  ENFILE: 'the system may open no more files (fs.file-max)',
}

/** Why a system call on a file failed, without its call and path; in words where they are known. */
export function inWords(error: unknown): string {
  const { code } = error as NodeJS.ErrnoException
  return code === undefined ? String(error) : (REASONS[code] ?? code)
}

/** Errors of a dead file system below the image. Passed on, they would say that this mount is dead. */
const OF_ANOTHER_MOUNT = new Set([ENOTCONN, ECONNABORTED, ESTALE, ENODEV])

/** What a FUSE reply carries, positive. A bug of ours is EIO to the caller, and a stack in the log. */
export function errnoOf(error: unknown): number {
  if (error instanceof ImageError) return ERRNO[error.code]
  const errno = Math.abs(Number((error as NodeJS.ErrnoException | undefined)?.errno))
  return errno > 0 && !OF_ANOTHER_MOUNT.has(errno) ? errno : EIO
}

/** Whether the user, the image or the machine caused this: then one line says it, without a stack. */
export function isExpected(error: unknown): error is Error {
  return (
    error instanceof ImageError ||
    error instanceof UsageError ||
    error instanceof MountError ||
    error instanceof SystemError ||
    missingPackage(error) !== undefined ||
    // Node's words where memory is scarce.
    (error instanceof RangeError && /allocat/.test(error.message)) ||
    (error instanceof Error && typeof (error as NodeJS.ErrnoException).syscall === 'string')
  )
}

const NO_FOLDER =
  'the current folder has been deleted; change to one that is there, or give absolute names'

/** The one line that a user sees. Control characters of names and messages are shown, not obeyed. */
export function oneLine(error: Error): string {
  const context = error instanceof ImageError ? error.context : {}
  const path = context.path === undefined ? '' : `${context.path}: `
  const hint = context.hint === undefined ? '' : `; ${context.hint}`
  return printable(`${path}${wordsOf(error)}${hint}`)
}

function wordsOf(error: Error): string {
  const { code } = error as NodeJS.ErrnoException
  if (code === 'EMFILE' || code === 'ENFILE') return `${error.message}: ${REASONS[code]}`
  // Only relative names need the current folder.
  if ((error as NodeJS.ErrnoException).syscall === 'uv_cwd') return NO_FOLDER
  const missing = missingPackage(error)
  if (missing === undefined) return error.message
  return `the package ${missing}, which vimgfs needs, is not installed; ${installHint(false)}`
}

/** `text` for a terminal: hidden characters are shown as escapes, and it is cut at 2000 characters. */
export function printable(text: string): string {
  const cut = text.length > 2000 ? `${text.slice(0, 2000)}…` : text
  return withoutHidden(cut)
}
