/**
 * Opens the files that images name: backing files, data files, extents.
 *
 * An image is hostile input, and a name in it is a request to read a file with the user's rights. Only regular files are
 * opened, and only below the folder of the image that the user named or below folders that the user allowed. These
 * folders are held open (folders.ts), and the kernel keeps names within them.
 */
import fs from 'node:fs'
import path from 'node:path'
import { ImageError, ImageInUse, inWords } from '../errors.js'
import { pathOfDescriptor } from './beneath.js'
import {
  closeFolders,
  findImage,
  findWithin,
  type Folder,
  folderAt,
  holdFolders,
} from './folders.js'
import { closeFile } from './libc.js'
import {
  folderOfAddress,
  isBelow,
  resolvedAddress,
  schemeOf,
  shownAddress,
} from '../sources/address.js'
import {
  closeSource,
  isAddress,
  kindOfAddress,
  remoteStore,
  type SourceKind,
} from '../sources/registry.js'
import type { Access, OpenedFile } from './opened-file.js'
import { WriteProtected } from './write-protected.js'
import { processesWithOpen } from './processes.js'

import type { Naming } from './naming.js'

export type { MemberOpener, Naming } from './naming.js'
export type { Access, OpenedFile } from './opened-file.js'
export { type ReadersProblem, WriteProtected } from './write-protected.js'

const { O_RDONLY, O_RDWR, O_NONBLOCK, O_EXCL } = fs.constants

/** Opens the regular file or block device that the user named. Throws ImageError. */
export function openGiven(name: string, access: Access = 'read'): OpenedFile {
  const { folders, own: _, ...file } = openImage(name, access, [])
  closeFolders(folders)
  return file
}

/** An image with the folders in which it may name files, for `closeFolders`. */
export interface OpenedImage extends OpenedFile {
  readonly folders: readonly Folder[]
  /** The folders that it lies in: that of its name, and, if the name is a link, that of the file. */
  readonly own: readonly Folder[]
}

/**
 * Opens the image that the user named, and holds the folders that it lies in (by its name, and with symbolic links
 * resolved) and those of `allowPaths`. Throws ImageError, and then leaves nothing open.
 */
export function openImage(
  name: string,
  access: Access,
  allowPaths: readonly string[],
): OpenedImage {
  const kind = kindOfAddress(name)
  if (kind) return openRemote(name, kind, access, allowPaths)
  const file = path.resolve(name)
  if (!isText(file)) {
    throw new ImageError('UNSUPPORTED', NOT_TEXT, {
      path: file,
      hint: 'make a link to it with another name, in another folder',
    })
  }
  const extra = holdFolders(allowPaths)
  let own: readonly Folder[] = []
  try {
    const found = orMissing(() => findImage(file), file, 'look at the name')
    own = found.folders
    return { ...openPlace(found.place, file, access), folders: [...own, ...extra], own }
  } catch (error) {
    closeFolders([...own, ...extra])
    throw error
  }
}

/** Closes a file that is not a layer of a chain. */
export function closeOpened({ fd, source }: OpenedFile): void {
  fs.closeSync(fd)
  closeSource(source)
}

function openRemote(
  address: string,
  kind: SourceKind,
  access: Access,
  allowPaths: readonly string[],
): OpenedImage {
  const extra = holdFolders(allowPaths)
  try {
    const own = [folderAt(folderOfAddress(address))]
    return { ...kind.open(address, access), folders: [...own, ...extra], own }
  } catch (error) {
    closeFolders(extra)
    throw error
  }
}

/** Opens `place`, an O_PATH descriptor of what the user named, for reading or writing, and closes it. */
function openPlace(place: number, file: string, access: Access): OpenedFile {
  try {
    const stat = fs.fstatSync(place, { bigint: true })
    if (!stat.isFile() && !stat.isBlockDevice()) {
      throw new ImageError('REFUSED', `this is ${kindOf(stat)}, not a disk image`, {
        path: file,
        hint: 'name an image file or a block device',
      })
    }
    // O_EXCL refuses a device that is mounted or part of another one: the kernel itself may write that.
    const flags = access === 'write' && stat.isBlockDevice() ? O_EXCL : 0
    return open(place, file, file, access, flags)
  } finally {
    closeFile(place)
  }
}

/** Node turns bytes that are not UTF-8 into U+FFFD, and the name with U+FFFD may be another file's. */
export const isText = (name: string): boolean => !name.includes('\ufffd')
const NOT_TEXT = 'this name, or its folder, is not UTF-8'

/** Opens the file that an image names. Throws ImageError. */
export function openNamed(name: string, naming: Naming, access: Access = 'read'): OpenedFile {
  const refuse = (code: 'REFUSED' | 'UNSUPPORTED', what: string, hint: string): never => {
    throw new ImageError(code, `its ${naming.role} "${name}" ${what}`, { path: naming.by, hint })
  }
  // QEMU takes all that follows for a path, also with colons in it.
  const isPath = name.startsWith('file:')
  const plain = isPath ? name.slice('file:'.length) : name
  if (naming.archive) return naming.archive.openNamed(plain, naming)
  if (!isPath && isAddress(plain)) return openNamedRemote(plain, naming, access)
  const beforeSlash = plain.split('/', 1)[0] as string
  if (!isPath && beforeSlash.includes(':')) {
    refuse(
      'UNSUPPORTED',
      'is not a plain path but a protocol',
      'only files are opened; copy it to a file beside the image',
    )
  }
  if (plain === '' || plain.includes('\0')) {
    refuse('REFUSED', 'is no file name', 'restore the image from a copy')
  }
  if (isAddress(naming.by)) return openNamedRemote(plain, naming, access)
  const file = path.resolve(path.dirname(naming.by), plain)
  if (!isText(file)) {
    refuse(
      'UNSUPPORTED',
      'or its folder is not UTF-8',
      naming.role === 'backing file'
        ? 'rename it; vimgfs rebase -u puts the new name into a qcow2 image'
        : 'rename it',
    )
  }
  const context = `its ${naming.role} "${name}"`
  const place = orMissing(
    () => findWithin(file, naming.allowed),
    naming.by,
    naming.hint(file),
    context,
  )
  if (place === undefined) {
    return refuse(
      'REFUSED',
      "lies outside the image's folder",
      `allow it with --allow-path ${path.dirname(realPath(file))}, or, if it is not there, ${naming.hint(file)}`,
    )
  }
  try {
    const stat = fs.fstatSync(place, { bigint: true })
    if (!stat.isFile()) {
      refuse(
        'REFUSED',
        `is ${kindOf(stat)}, not a regular file`,
        'an image may name regular files only',
      )
    }
    return open(place, file, naming.by, access, 0, context)
  } finally {
    closeFile(place)
  }
}

/**
 * Opens a file by an address, or beside an image that has one. It must lie in the image's own folder, or below an address that the
 * user allowed. Names of files of this machine are never opened here. Throws ImageError.
 */
function openNamedRemote(name: string, naming: Naming, access: Access): OpenedFile {
  const { by, role, allowed } = naming
  const refuse = (what: string, hint: string): never => {
    throw new ImageError('REFUSED', `its ${role} "${name}" ${what}`, { path: by, hint })
  }
  if (schemeOf(name) === undefined && name.startsWith('/')) {
    refuse(
      'is a path on one machine, and this image comes from another one',
      'give it a relative name there: vimgfs rebase -u',
    )
  }
  const address = resolvedAddress(name, by)
  const isAllowed = allowed.some(folder => folder.address && isBelow(address, folder.address))
  if (!isAllowed) {
    refuse(
      isAddress(by) ? "lies outside the image's folder" : 'is not on this machine',
      `allow it with --allow-path ${shownAddress(folderOfAddress(address))}`,
    )
  }
  const kind = kindOfAddress(address)
  if (!kind) return refuse('is no address', 'restore the image from a copy')
  try {
    return kind.open(address, access)
  } catch (error) {
    if (!(error instanceof ImageError) || error instanceof WriteProtected) throw error
    const { hint } = error.context
    throw new ImageError(
      error.code,
      `its ${role} "${name}" cannot be opened: ${error.message}`,
      { path: by, ...(hint !== undefined && { hint }) },
      { cause: error },
    )
  }
}

/** Reads all of a small file that an image names; undefined if it does not exist. Throws ImageError. */
export function readIfThere(name: string, naming: Naming, maxBytes: number): Buffer | undefined {
  let file: OpenedFile
  try {
    file = openNamed(name, naming)
  } catch (error) {
    const { cause } = error as Error
    if ((cause as NodeJS.ErrnoException | undefined)?.code === 'ENOENT') return undefined
    throw error
  }
  try {
    const { part } = file
    const size = part?.sizeBytes ?? file.stat.size
    if (size > maxBytes) {
      const what = `it has ${size} bytes, too many for a ${naming.role}`
      throw new ImageError('CORRUPT', what, { path: naming.by })
    }
    const bytes = Buffer.alloc(Number(size))
    const { path, fd, source } = file
    const at = part?.startAt ?? 0
    const sizeBytes = at + bytes.length
    const got = source
      ? remoteStore({ path, fd, sizeBytes, source }).read(bytes, 0, bytes.length, at)
      : fs.readSync(fd, bytes, 0, bytes.length, at)
    return bytes.subarray(0, got)
  } finally {
    closeOpened(file)
  }
}

/**
 * Opens the first of `names` that exists and fits; undefined if none of those that exist fits. The other names are for
 * files that were moved: if a file exists under the first name but may not be opened, it is refused. Throws ImageError
 * about the first name.
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
      closeOpened(file)
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

/** Resolves symbolic links where possible, for hints. */
function realPath(file: string): string {
  try {
    return fs.realpathSync.native(file)
  } catch {
    return file
  }
}

function orMissing<T>(look: () => T, at: string, hint: string, what = 'it'): T {
  try {
    return look()
  } catch (error) {
    if (error instanceof ImageError) throw error
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

/** Opens the file of `place`, an O_PATH descriptor that `file` was found to lead to. */
function open(
  place: number,
  file: string,
  at: string,
  access: Access,
  flags: number,
  what = 'it',
): OpenedFile {
  let fd: number
  try {
    const mode = access === 'write' ? O_RDWR : O_RDONLY
    fd = fs.openSync(pathOfDescriptor(place), mode | O_NONBLOCK | flags)
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
      const holders = processesWithOpen(file)
      throw new ImageInUse(`${what} is in use: mounted, or part of another device`, holders, {
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

/** The errors of open(2) for files that may not be written, or not now. */
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
