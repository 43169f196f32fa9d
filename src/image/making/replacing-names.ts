/**
 * Gives a new image of several files the names of an old one, so that at every moment the main file describes a whole image:
 *
 *  (1) The new files get names of their own beside the old ones.
 *  (2) A main file that knows them by these names replaces the old main file. From then on the new image is there.
 *  (3) The new files replace the old ones, and keep their own names meanwhile: both are links to one file.
 *  (4) The main file that knows them by their final names comes last. After it the names of their own go.
 *
 * Each step is in the folder on the disk before the next one.
 */
import fs from 'node:fs'
import path from 'node:path'
import { nameFile } from '../../io/libc.js'
import { syncFolder } from '../../io/replace-file.js'

export interface NamedFile {
  /** Its final name, absolute. */
  readonly path: string
  readonly fd: number
  /** Its temporary name; undefined if it has none yet. */
  readonly temporary: string | undefined
  /** The file that it replaces; undefined if there is none. */
  readonly replaced: number | undefined
}

/** Returns the content of the main file with other names for the image's other files; undefined if that is not possible. */
export type MainWith = (nameOf: (name: string) => string) => Buffer | undefined

/** A file with a name of its own, and a second link to it that will replace the old file. */
interface Aside {
  readonly file: NamedFile
  readonly name: string
  readonly link: string | undefined
}

/**
 * Replaces the files. Returns false, and then nothing has changed, where `mainWith` or the file system cannot help: it needs hard
 * links. Throws Node's errors, SystemError: then the old image is whole, or the new one is, perhaps with the names of (2).
 * @param temporaryName returns a hidden name in the folder of a file
 */
export function replaceWhole(
  main: NamedFile,
  others: readonly NamedFile[],
  mainWith: MainWith,
  temporaryName: (final: string) => string,
): boolean {
  const ending = path.basename(temporaryName(main.path)).replace(/^.*-/, '')
  const asides = others.map(file => ({
    file,
    name: asideName(file.path, ending),
    link: file.replaced === undefined ? undefined : temporaryName(file.path),
  }))
  const names = new Map(asides.map(({ file, name }) => [path.basename(file.path), name]))
  const text = mainWith(name => path.basename(names.get(name) ?? name))
  if (!text) return false
  const first = temporaryName(main.path)
  const last = main.temporary ?? temporaryName(main.path)
  if (!prepare(main, asides, text, { first, last })) return false
  const folders = new Set([main, ...others].map(file => path.dirname(file.path)))
  const syncFolders = () => {
    for (const folder of folders) syncFolder(folder)
  }
  syncFolders()
  fs.renameSync(first, main.path) // (2)
  syncFolders()
  for (const { file, name, link } of asides) {
    if (link !== undefined) fs.renameSync(link, file.path)
    else fs.linkSync(name, file.path)
  }
  syncFolders()
  fs.renameSync(last, main.path) // (4)
  syncFolders()
  for (const { name } of asides) fs.rmSync(name)
  return true
}

/** Makes all names beside the old files. Returns false if the file system cannot. Leaves nothing then, and after an error. */
function prepare(
  main: NamedFile,
  asides: readonly Aside[],
  text: Buffer,
  { first, last }: { first: string; last: string },
): boolean {
  const made: string[] = []
  try {
    for (const { file, name, link } of asides) {
      if (file.temporary === undefined) nameFile(file.fd, name)
      else fs.linkSync(file.temporary, name)
      made.push(name)
      if (link === undefined) continue
      fs.linkSync(name, link)
      made.push(link)
    }
    made.push(first)
    writeLike(first, text, main.fd)
    if (main.temporary === undefined) nameFile(main.fd, last)
    return true
  } catch (error) {
    for (const name of made) fs.rmSync(name, { force: true })
    const { code = '' } = error as NodeJS.ErrnoException
    if (asides[0]?.file.temporary !== undefined && made.length === 0 && NO_LINK.has(code))
      return false
    throw error
  }
}

/** The errors of file systems without hard links. */
const NO_LINK = new Set(['EPERM', 'EOPNOTSUPP', 'ENOTSUP', 'EMLINK', 'ENOSYS'])

/** A visible name: after a power cut the image may need it. */
function asideName(final: string, ending: string): string {
  const { dir, name, ext } = path.parse(final)
  return path.join(dir, `${name}-new-${ending}${ext}`)
}

/** Writes a file with the owner and the mode of `fd`, and syncs it. */
function writeLike(name: string, bytes: Buffer, fd: number): void {
  const { mode, uid, gid } = fs.fstatSync(fd)
  const made = fs.openSync(name, 'wx', mode & 0o777)
  try {
    fs.writeFileSync(made, bytes)
    try {
      fs.fchownSync(made, uid, gid)
    } catch {
      // It then belongs to this user, as the other files do.
    }
    fs.fchmodSync(made, mode & 0o777)
    fs.fsyncSync(made)
  } finally {
    fs.closeSync(made)
  }
}
