/**
 * Folders that are held open while an image and the files that it names are opened. What a path leads to may change at
 * any moment, and must not change what the image may open.
 */
import fs from 'node:fs'
import { constants } from 'node:os'
import path from 'node:path'
import { ImageError, inWords, SystemError } from '../errors.js'
import { schemeOf } from '../sources/address.js'
import { MAX_LINKS, openBeneath, pathOfDescriptor } from './beneath.js'
import { AT_FDCWD, closeFile, errno, O_PATH, openAt, readLink } from './libc.js'

const { O_DIRECTORY, O_NOFOLLOW } = fs.constants

export interface Folder {
  /** Opened with O_PATH, for `closeFolders`. */
  readonly fd: number
  /** Its path when it was opened, without symbolic links; each byte is a latin1 character. */
  readonly path: string
  /** Of a folder, or a file, that is not on this machine: its address. Then there is no descriptor. */
  readonly address?: string
}

/** Returns the folder at an address, with what lies below it. */
export const folderAt = (address: string): Folder => ({ fd: -1, path: '', address })

/** Returns the names in the folder; none if it cannot be listed. */
export function namesIn({ fd }: Folder): string[] {
  try {
    return fs.readdirSync(pathOfDescriptor(fd))
  } catch {
    return []
  }
}

/** How often to look again at names that change while they are looked at. */
const MAX_ATTEMPTS = 50
/** The errors that a name may cause that has just changed. */
const CHANGED = new Set(['ENOENT', 'ENOTDIR', 'ELOOP', 'EXDEV'])

export function closeFolders(folders: readonly Folder[]): void {
  for (const { fd, address } of folders) if (address === undefined) closeFile(fd)
}

/** Opens and holds the folders of `--allow-path`. Throws ImageError, and then holds none. */
export function holdFolders(paths: readonly string[]): Folder[] {
  const held: Folder[] = []
  try {
    for (const name of paths) {
      const isRemote = schemeOf(name) !== undefined
      held.push(isRemote ? folderAt(name) : folderOf(openFolder(AT_FDCWD, Buffer.from(name))))
    }
    return held
  } catch (error) {
    closeFolders(held)
    const what = `the folder of --allow-path cannot be used: ${inWords(error)}`
    throw new ImageError('MISSING', what, { path: paths[held.length] as string })
  }
}

/** An image that was found by its name, and is only opened with O_PATH so far. */
export interface FoundImage {
  /** An O_PATH descriptor for `closeFile`. */
  readonly place: number
  /** The folders that it lies in: that of its name, and, if the name is a link, that of the file. */
  readonly folders: readonly Folder[]
}

/**
 * Finds the image `file`, an absolute path, with its folders. It is the file that the kernel finds by that path, and the
 * last of the folders has been seen to contain it. Throws SystemError; ImageError if no folder contains it.
 */
export function findImage(file: string): FoundImage {
  for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
    // The kernel decides whether this user may follow the links.
    const place = openAt(AT_FDCWD, Buffer.from(file), O_PATH)
    if (place < 0) throw new SystemError('open', errno(), file)
    try {
      const found = seek(file)
      if (isSameFile(found.place, place)) return found
      closeFound(found)
    } catch (error) {
      if (!hasChanged(error)) throw error
    } finally {
      closeFile(place)
    }
  }
  throw new ImageError('MISSING', 'it has been removed, or never had a name', {
    path: file,
    hint: 'copy it to a file',
  })
}

export function closeFound({ place, folders }: FoundImage): void {
  closeFile(place)
  closeFolders(folders)
}

/** Follows the links of the path's last component one by one, each from the folder that it lies in. */
function seek(file: string): FoundImage {
  const held: number[] = []
  try {
    let target: Buffer = Buffer.from(file)
    let folder = AT_FDCWD
    for (let links = 0; links <= MAX_LINKS; links++) {
      const slash = target.lastIndexOf('/')
      const above = slash < 0 ? '.' : target.subarray(0, Math.max(slash, 1))
      folder = openFolder(folder, Buffer.from(above))
      held.push(folder)
      const name = target.subarray(slash + 1)
      const place = openAt(folder, name.length > 0 ? name : Buffer.from('.'), O_PATH | O_NOFOLLOW)
      if (place < 0) throw new SystemError('openat', errno())
      if (!fs.fstatSync(place).isSymbolicLink()) {
        const kept = new Set([held[0] as number, folder])
        for (const fd of held.splice(0)) if (!kept.has(fd)) closeFile(fd)
        return { place, folders: [...kept].map(folderOf) }
      }
      try {
        target = readLink(place)
      } finally {
        closeFile(place)
      }
    }
    throw new SystemError('openat', constants.errno.ELOOP)
  } finally {
    for (const fd of held) closeFile(fd)
  }
}

function openFolder(from: number, name: Buffer): number {
  const fd = openAt(from, name, O_PATH | O_DIRECTORY)
  if (fd < 0) throw new SystemError('open', errno())
  return fd
}

const folderOf = (fd: number): Folder => ({
  fd,
  path: fs.readlinkSync(pathOfDescriptor(fd), 'latin1'),
})

/**
 * Finds `file`, an absolute path, in one of `allowed`. Returns an O_PATH descriptor for `closeFile`, or undefined if it
 * lies in none of the folders. Resolving the path only decides in which folder to look; the file found there must be the
 * same. Throws SystemError.
 */
export function findWithin(file: string, allowed: readonly Folder[]): number | undefined {
  for (let attempt = 0; ; attempt++) {
    const real = realOf(file)
    const folder = allowed.find(
      ({ path, address }) => address === undefined && isWithin(real, path),
    )
    // Before anything else: an image must not find out which files exist elsewhere.
    if (!folder) return undefined
    const place = openAt(AT_FDCWD, Buffer.from(file), O_PATH)
    if (place < 0) throw new SystemError('open', errno(), file)
    try {
      const relative = path.relative(folder.path, real)
      const found = openBeneath(folder.fd, Buffer.from(relative === '' ? '.' : relative, 'latin1'))
      if (isSameFile(found, place)) return found
      closeFile(found)
    } catch (error) {
      if (!hasChanged(error)) throw error
    } finally {
      closeFile(place)
    }
    if (attempt === MAX_ATTEMPTS) return undefined
  }
}

/**
 * Returns `file` with its symbolic links resolved; if it does not exist, with those of its folder resolved. Each byte of
 * a path is a latin1 character.
 */
function realOf(file: string): string {
  try {
    return fs.realpathSync.native(file, 'latin1')
  } catch {
    const folder = path.dirname(file)
    const name = Buffer.from(path.basename(file)).toString('latin1')
    return folder === file ? name || file : path.join(realOf(folder), name)
  }
}

export function isWithin(file: string, folder: string): boolean {
  const relative = path.relative(folder, file)
  return (
    relative === '' ||
    (relative !== '..' && !relative.startsWith('../') && !path.isAbsolute(relative))
  )
}

function isSameFile(a: number, b: number): boolean {
  const [one, other] = [a, b].map(fd => fs.fstatSync(fd, { bigint: true }))
  return one?.dev === other?.dev && one?.ino === other?.ino
}

const hasChanged = (error: unknown): boolean =>
  error instanceof SystemError && CHANGED.has(error.code)
