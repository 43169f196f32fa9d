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
  /** Whether further writes would make the image worse. */
  endsWriting?: boolean
  /** Whether another process has made a file of the image shorter since it was opened. */
  isCutOff?: boolean
  /** Whether another thread has reported the same error already, so that the log gets one line only. */
  isRepeated?: boolean
  /** The way out for the user, as the end of a sentence. */
  hint?: string
}

/** An image file says something wrong or unsupported. Use `assert` for what our own code cannot get wrong. */
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

/** Adds the place on the disk, in bytes, to an ImageError that has none. Returns the error. */
export function atOffset(error: unknown, offset: number): unknown {
  if (error instanceof ImageError) error.context.offset ??= offset
  return error
}

/** Another process has the image open, and its locks forbid what the image is to be opened for. */
export class ImageInUse extends ImageError {
  constructor(
    message: string,
    /** The processes that hold the locks, as far as this user may see them. */
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

/** The machine or the mount point prevents the command: one line, exit code 1. */
export class MountError extends Error {
  override name = 'MountError'
}

/** This user has mounted the image already: exit code 3. */
export class AlreadyMounted extends MountError {
  override name = 'AlreadyMounted'
}

/** The answer of a mount's server to a command: its words, and the exit code that goes with them. */
export class RemoteError extends MountError {
  override name = 'RemoteError'
  constructor(
    message: string,
    readonly exit: number,
  ) {
    super(message)
  }
}

/** Returns the exit code of a command that ends with `error`. */
export function exitCodeOf(error: unknown): number {
  if (error instanceof RemoteError) return error.exit
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
  /** Whether the content of the image's file is unknown since this error. */
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

/** Runs `act`. If it fails, the content of the image's file is unknown, and the error says that writing must end. */
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
  ENOSPC: 'no space is left there',
  EDQUOT: 'the quota of disk space is used up',
  EFBIG: 'the file would be larger than its file system, or a limit (ulimit -f), allows',
  EIO: 'the storage reports an error (EIO)',
}
/** The ways out of errors that the user can do something about. */
const WAYS_OUT: Record<string, string> = {
  ENOSPC: 'make room, or use another folder',
  EDQUOT: 'make room, or use another folder',
  EFBIG: 'use another file system, or make the disk smaller',
  EIO: 'look at the log of the kernel (dmesg)',
}

/** Returns why a system call on a file failed, in words if there are any, without the call and the path. */
export function inWords(error: unknown): string {
  const { code } = error as NodeJS.ErrnoException
  return code === undefined ? String(error) : (REASONS[code] ?? code)
}

/** Errors of a dead file system below the image. In a reply they would mean that this mount is dead. */
const OF_ANOTHER_MOUNT = new Set([ENOTCONN, ECONNABORTED, ESTALE, ENODEV])

/** Returns the errno for a FUSE reply, positive. A bug of ours is EIO to the caller, and a stack in the log. */
export function errnoOf(error: unknown): number {
  if (error instanceof ImageError) return ERRNO[error.code]
  const errno = Math.abs(Number((error as NodeJS.ErrnoException | undefined)?.errno))
  return errno > 0 && !OF_ANOTHER_MOUNT.has(errno) ? errno : EIO
}

/** Reports whether the user, the image or the machine caused this. Then the message is one line, without a stack. */
export function isExpected(error: unknown): error is Error {
  return (
    error instanceof ImageError ||
    error instanceof UsageError ||
    error instanceof MountError ||
    error instanceof SystemError ||
    missingPackage(error) !== undefined ||
    // Node's words for a lack of memory.
    (error instanceof RangeError && /allocat/.test(error.message)) ||
    (error instanceof Error && typeof (error as NodeJS.ErrnoException).syscall === 'string')
  )
}

const NO_FOLDER =
  'the current folder has been deleted; change to one that is there, or give absolute names'

/** Returns the one line that a user sees. Control characters in names and messages are escaped. */
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
  if (missing === undefined) return error instanceof SystemError ? failedCall(error) : error.message
  return `the package ${missing}, which vimgfs needs, is not installed; ${installHint(false)}`
}

/** Returns what a system call could not do, in words where the user can do something about it. */
function failedCall({ syscall, path, code, message }: SystemError): string {
  const way = WAYS_OUT[code]
  if (way === undefined || path === undefined) return message
  return `${path}: ${syscall} failed: ${REASONS[code]}; ${way}`
}

/** Returns `text` for a terminal: hidden characters are escaped, and it is cut at 2000 characters. */
export function printable(text: string): string {
  const cut = text.length > 2000 ? `${text.slice(0, 2000)}…` : text
  return withoutHidden(cut)
}
