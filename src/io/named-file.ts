/**
 * Opening the files that images name: backing files, data files, extents.
 *
 * An image is hostile input, and a name in it is a request to read a file in the user's name. Only
 * regular files are opened, and only in the folder of the image that the user named or in folders that
 * the user allowed; symbolic links are followed first, so that a link cannot lead out.
 */
import fs from 'node:fs'
import path from 'node:path'
import { ImageError, inWords } from '../errors.js'

const { O_RDONLY, O_RDWR, O_NONBLOCK, O_NOFOLLOW, O_EXCL } = fs.constants

/** 'write' means reading, too. */
export type Access = 'read' | 'write'

/** A file that cannot be opened for writing; reading it may do. */
export class WriteProtected extends ImageError {
  constructor(path: string, message: string, hint: string) {
    super('READ_ONLY', message, { path, hint })
  }
}

export interface OpenedFile {
  /** As it was named, made absolute; symbolic links are not resolved. */
  readonly path: string
  readonly fd: number
  readonly stat: fs.BigIntStats
}

/** Opens what the user named: a regular file or a block device. Throws ImageError. */
export function openGiven(name: string, access: Access = 'read'): OpenedFile {
  const file = path.resolve(name)
  if (!isText(file)) {
    throw new ImageError('UNSUPPORTED', NOT_TEXT, {
      path: file,
      hint: 'make a link to it with another name, in another folder',
    })
  }
  const stat = statOf(file, file, 'look at the name')
  if (!stat.isFile() && !stat.isBlockDevice()) {
    throw new ImageError('REFUSED', `this is ${kindOf(stat)}, not a disk image`, {
      path: file,
      hint: 'name an image file or a block device',
    })
  }
  // A device that is mounted or part of another one is not written behind the kernel's back.
  const flags = access === 'write' && stat.isBlockDevice() ? O_EXCL : 0
  return open(file, file, access, flags)
}

/** Node has names as text: what is no UTF-8 becomes U+FFFD there, which may be the name of another file. */
export const isText = (name: string): boolean => !name.includes('\ufffd')
const NOT_TEXT = 'this name, or its folder, is not UTF-8'

const RESTORE_NAMED = 'restore it, or name it with qemu-img rebase -u'

export interface Naming {
  /** The file that holds the name, as it was opened. */
  readonly by: string
  /** What the name is for: "backing file", "data file". */
  readonly role: string
  /** Folders, resolved, below which files may be opened. */
  readonly allowed: readonly string[]
  /** What to do where it is not there; for qcow2 it is known. */
  readonly hint?: string
}

/** Opens what an image named. Throws ImageError. */
export function openNamed(name: string, naming: Naming, access: Access = 'read'): OpenedFile {
  const refuse = (code: 'REFUSED' | 'UNSUPPORTED', what: string, hint: string): never => {
    throw new ImageError(code, `its ${naming.role} "${name}" ${what}`, { path: naming.by, hint })
  }
  const plain = name.startsWith('file:') ? name.slice('file:'.length) : name
  const beforeSlash = plain.split('/', 1)[0] as string
  if (beforeSlash.includes(':')) {
    refuse(
      'UNSUPPORTED',
      'is not a plain path but a protocol',
      'only files are opened; copy it to a file beside the image',
    )
  }
  if (plain === '' || plain.includes('\0')) {
    refuse('REFUSED', 'is no file name', 'restore the image from a copy')
  }
  const file = path.resolve(path.dirname(naming.by), plain)
  const real = realOf(file)
  // First of all: an image must not learn what there is elsewhere.
  if (!naming.allowed.some(folder => isWithin(real, folder))) {
    refuse(
      'REFUSED',
      "lies outside the image's folder",
      `allow it with --allow-path ${path.dirname(real)}`,
    )
  }
  if (!isText(file) || !isText(real)) {
    refuse(
      'UNSUPPORTED',
      'or its folder is not UTF-8',
      'rename it, and name it with qemu-img rebase -u',
    )
  }
  const context = `its ${naming.role} "${name}"`
  const stat = statOf(file, naming.by, naming.hint ?? RESTORE_NAMED, context)
  if (!stat.isFile()) {
    refuse(
      'REFUSED',
      `is ${kindOf(stat)}, not a regular file`,
      'an image may name regular files only',
    )
  }
  const opened = open(real, naming.by, access, O_NOFOLLOW, context)
  // Between the look and the opening somebody may have put another thing there.
  if (!opened.stat.isFile()) {
    fs.closeSync(opened.fd)
    refuse(
      'REFUSED',
      `is ${kindOf(opened.stat)}, not a regular file`,
      'an image may name regular files only',
    )
  }
  return { ...opened, path: file }
}

/**
 * Opens the first of `names` that is there and fits; undefined where all that are there do not fit. The
 * others are for files that have gone elsewhere: one that is where the first name says, and may not be
 * opened, is refused. Throws ImageError, which says what is wrong with the first.
 */
export function openFirst(
  names: readonly string[],
  naming: Naming,
  fits: (file: OpenedFile, name: string) => boolean = () => true,
  access: Access = 'read',
): OpenedFile | undefined {
  let problem: unknown
  let isUnfit = false
  for (const name of names) {
    try {
      const file = openNamed(name, naming, access)
      if (fits(file, name)) return file
      fs.closeSync(file.fd)
      isUnfit = true
    } catch (error) {
      if (name === names[0] && fs.existsSync(path.resolve(path.dirname(naming.by), name)))
        throw error
      problem ??= error
    }
  }
  if (isUnfit && problem === undefined) return undefined
  throw problem
}

/** The folders that an image may name files in: its own, by both its names, and `extra`. */
export function allowedFolders(image: string, extra: readonly string[]): string[] {
  const own = [path.dirname(path.resolve(image)), path.dirname(placeOf(image))]
  const named = extra.map(folder => {
    try {
      return fs.realpathSync(folder)
    } catch (error) {
      throw new ImageError(
        'MISSING',
        `the folder of --allow-path cannot be used: ${inWords(error)}`,
        {
          path: folder,
        },
      )
    }
  })
  // A link may lead to a folder that is not UTF-8.
  const real = own.filter(isText).map(folder => fs.realpathSync(folder))
  return [...new Set([...real, ...named])]
}

/** Where an image that could be opened lies. */
function placeOf(image: string): string {
  try {
    return fs.realpathSync.native(image)
  } catch (error) {
    // It was opened by a link in /proc.
    throw new ImageError(
      'MISSING',
      'it has been removed, or never had a name',
      { path: image, hint: 'copy it to a file' },
      { cause: error },
    )
  }
}

/** `file` with its symbolic links resolved; where it does not exist, those of its folder. */
function realOf(file: string): string {
  try {
    return fs.realpathSync(file)
  } catch {
    const folder = path.dirname(file)
    return folder === file ? file : path.join(realOf(folder), path.basename(file))
  }
}

export function isWithin(file: string, folder: string): boolean {
  const relative = path.relative(folder, file)
  return (
    relative === '' ||
    (relative !== '..' && !relative.startsWith('../') && !path.isAbsolute(relative))
  )
}

function statOf(file: string, at: string, hint: string, what = 'it'): fs.BigIntStats {
  try {
    return fs.statSync(file, { bigint: true })
  } catch (error) {
    throw new ImageError(
      'MISSING',
      `${what} cannot be opened: ${inWords(error)}`,
      { path: at, hint: isForbidden(error) ? MAY_YOU_READ : hint },
      { cause: error },
    )
  }
}

const MAY_YOU_READ = 'check that you may read it, and enter its folder'
const isForbidden = (error: unknown): boolean => (error as NodeJS.ErrnoException).code === 'EACCES'

/** O_NONBLOCK: what turns out to be a FIFO must not hold us up before we see what it is. */
function open(file: string, at: string, access: Access, flags: number, what = 'it'): OpenedFile {
  let fd: number
  try {
    fd = fs.openSync(file, (access === 'write' ? O_RDWR : O_RDONLY) | O_NONBLOCK | flags)
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException
    if (access === 'write' && PROTECTED.has(code)) {
      const message = `${what} is write-protected (${inWords(error)})`
      throw new WriteProtected(
        file,
        message,
        'check that you may write it, or only read it (mount -o ro)',
      )
    }
    if (access === 'write' && code === 'EBUSY') {
      throw new ImageError('REFUSED', `${what} is in use: mounted, or part of another device`, {
        path: file,
        hint: 'unmount it (lsblk shows where), or read it with -o ro',
      })
    }
    throw new ImageError(
      'MISSING',
      `${what} cannot be opened: ${inWords(error)}`,
      {
        path: at,
        hint: 'check that you may read it',
      },
      { cause: error },
    )
  }
  return { path: file, fd, stat: fs.fstatSync(fd, { bigint: true }) }
}

/** What open(2) says of files that may not be written, or not now. */
const PROTECTED = new Set(['EACCES', 'EPERM', 'EROFS', 'ETXTBSY'])

function kindOf(stat: fs.BigIntStats): string {
  if (stat.isFile()) return 'a file'
  if (stat.isDirectory()) return 'a folder'
  if (stat.isFIFO()) return 'a FIFO'
  if (stat.isSocket()) return 'a socket'
  if (stat.isBlockDevice()) return 'a block device'
  if (stat.isCharacterDevice()) return 'a character device'
  return 'no file'
}
