/**
 * Files of a new image. Their final names appear only when the image is whole: until then they have no name (O_TMPFILE), so
 * that nothing is left behind however the program ends. Where the file system cannot do that, they have temporary names
 * beside the final ones.
 */
import fs from 'node:fs'
import path from 'node:path'
import { ImageError, inWords } from '../../errors.js'
import { nameFile } from '../../io/libc.js'
import type { FileSpec } from '../../io/file-spec.js'
import { lockImage } from '../../io/locks.js'
import { isText } from '../../io/named-file.js'
import { syncFolder } from '../../io/replace-file.js'
import { lacksTmpfile, openTmpfile } from '../../io/unnamed-file.js'
import type { WritableStore } from '../../io/store.js'
import { removeAtEnd, keepAtEnd } from '../opening/removed-at-end.js'
import { namingItsMount } from '../opening/mounted.js'
import { type MainWith, replaceWhole } from './replacing-names.js'
import { OPENED_FILES } from '../opening/store-source.js'

export interface NewFilesOptions {
  /** Whether files that exist already may be replaced. */
  readonly force?: boolean
  /** Files that are read meanwhile, and so must not be replaced. */
  readonly sources?: readonly Pick<FileSpec, 'fd'>[]
  /** Opens a file without a name in `folder`. Throws Node's error where its file system cannot; tests replace it. */
  readonly openUnnamed?: (folder: string) => number
}

/** A file that has no name yet. */
export interface NewFile {
  /** Its final name, absolute. */
  readonly path: string
  /** Open for reading and writing. */
  readonly fd: number
  readonly store: WritableStore
  /** The size that `store` shares with other threads. */
  readonly size: SharedArrayBuffer
}

interface Pending extends NewFile {
  /** Its temporary name, if it has one. */
  readonly temporary: string | undefined
  /** The file that it replaces: open and locked. */
  readonly replaced: number | undefined
}

const { O_RDWR, O_CREAT, O_EXCL } = fs.constants
/** The errors of file systems without hard links; ENOENT means that /proc is missing. */
const NO_LINK = new Set(['EPERM', 'EOPNOTSUPP', 'ENOTSUP', 'EMLINK', 'ENOSYS', 'ENOENT'])

export class NewFiles {
  /** The file that the user named. It gets its name last. */
  readonly main: NewFile
  private readonly pending: Pending[] = []

  /** Throws ImageError, and then nothing has changed. */
  constructor(
    name: string,
    private readonly options: NewFilesOptions = {},
  ) {
    this.main = this.add(name)
  }

  /** All files so far, the main one first. */
  get all(): readonly NewFile[] {
    return this.pending
  }

  /** Adds another file of the image: `name` is relative to the folder of the main file. Throws ImageError. */
  beside(name: string): NewFile {
    return this.add(path.resolve(path.dirname(this.main.path), name))
  }

  /**
   * Syncs all files and gives them their names, the main file last. If another file than the main one is replaced, and `mainWith`
   * can help, the main file describes a whole image at every moment (replacing-names.ts). Otherwise the old main file goes first: it
   * would describe files that are not its own. Throws ImageError, SystemError: then the main file's name is as before, or there
   * is none, and files that are complete may have got their names.
   */
  commit(mainWith: MainWith = () => undefined): void {
    try {
      for (const { fd } of this.pending) fs.fsyncSync(fd)
      this.nameAll(mainWith)
      for (const folder of new Set(this.pending.map(file => path.dirname(file.path)))) {
        syncFolder(folder)
      }
    } finally {
      this.discard()
    }
  }

  /** Closes all files. Those without a final name are gone. */
  discard(): void {
    for (const { fd, temporary, replaced } of this.pending.splice(0)) {
      fs.closeSync(fd)
      if (replaced !== undefined) fs.closeSync(replaced)
      if (temporary !== undefined) fs.rmSync(temporary, { force: true })
      keepAtEnd(temporary)
    }
  }

  private add(name: string): NewFile {
    const final = finalPath(name)
    if (this.pending.some(file => file.path === final)) {
      throw new ImageError('REFUSED', 'two files of the new image would have this name', {
        path: final,
        hint: 'choose another name',
      })
    }
    const replaced = this.openReplaced(final)
    try {
      const made = { ...create(final, this.options.openUnnamed), path: final, replaced }
      const size = new SharedArrayBuffer(8)
      const store = OPENED_FILES.writable(made, new BigInt64Array(size))
      const pending = { ...made, store, size }
      this.pending.push(pending)
      if (replaced !== undefined) takeOver(made.fd, replaced)
      return pending
    } catch (error) {
      if (replaced !== undefined) fs.closeSync(replaced)
      throw error
    }
  }

  /** Opens and locks the file that is to be replaced. Returns undefined if there is none. Throws ImageError. */
  private openReplaced(final: string): number | undefined {
    const stat = fs.statSync(final, { bigint: true, throwIfNoEntry: false })
    if (!stat) return undefined
    const refuse = (what: string, hint: string) => {
      throw new ImageError('REFUSED', what, { path: final, hint })
    }
    if (stat.isDirectory()) refuse('this is a folder', 'name a file in it')
    if (stat.isBlockDevice()) refuse('this is a block device', 'write into it with -n')
    if (!stat.isFile()) refuse('this is neither a file nor a block device', 'choose another name')
    for (const source of this.options.sources ?? []) {
      const { dev, ino } = fs.fstatSync(source.fd, { bigint: true })
      if (dev === stat.dev && ino === stat.ino) {
        refuse('the new image would replace a file that it is made of', 'choose another name')
      }
    }
    if (!this.options.force) {
      refuse(
        'there is a file of this name already',
        'choose another name, or replace it with --force',
      )
    }
    return openLocked(final)
  }

  private nameAll(mainWith: MainWith): void {
    const [main, ...others] = this.pending as [Pending, ...Pending[]]
    const replacesPart = others.some(({ replaced }) => replaced !== undefined)
    if (main.replaced === undefined || !replacesPart) {
      for (const file of [...others, main]) this.name(file)
      return
    }
    if (replacedWhole(main, others, mainWith)) return
    const old = temporaryName(main.path)
    renameKnown(main.path, old)
    syncFolder(path.dirname(main.path))
    let hasReplaced = false
    try {
      for (const file of others) {
        this.name(file)
        hasReplaced ||= file.replaced !== undefined
      }
      this.name({ ...main, replaced: undefined })
    } catch (error) {
      if (!hasReplaced) fs.renameSync(old, main.path)
      throw error
    } finally {
      fs.rmSync(old, { force: true })
    }
  }

  private name({ path: final, fd, temporary, replaced }: Pending): void {
    const refuse = (error: unknown): never => {
      const isThere = (error as NodeJS.ErrnoException).code === 'EEXIST'
      const what = isThere
        ? 'another program has made a file of this name meanwhile'
        : `the new file cannot get its name: ${inWords(error)}`
      throw new ImageError('REFUSED', what, { path: final, hint: 'choose another name' })
    }
    try {
      if (replaced !== undefined) {
        const name = temporary ?? temporaryName(final)
        if (temporary === undefined) nameFile(fd, name)
        try {
          fs.renameSync(name, final)
        } catch (error) {
          fs.rmSync(name, { force: true })
          throw error
        }
      } else if (temporary === undefined) {
        nameFile(fd, final)
      } else {
        renameToNew(temporary, final)
      }
    } catch (error) {
      refuse(error)
    }
  }
}

function replacedWhole(main: Pending, others: readonly Pending[], mainWith: MainWith): boolean {
  try {
    return replaceWhole(main, others, mainWith, temporaryName)
  } catch (error) {
    const what = `the new files cannot get their names: ${inWords(error)}`
    throw new ImageError('REFUSED', what, { path: main.path, hint: 'choose another name' })
  }
}

function renameKnown(from: string, to: string): void {
  try {
    fs.renameSync(from, to)
  } catch (error) {
    const what = `it cannot be replaced: ${inWords(error)}`
    throw new ImageError('REFUSED', what, { path: from, hint: 'choose another name' })
  }
}

/** Returns the absolute path of the file, with symbolic links resolved: the link stays, and its target is replaced. */
function finalPath(name: string): string {
  const absolute = path.resolve(name)
  const refuse = (what: string, hint: string): never => {
    throw new ImageError('REFUSED', what, { path: absolute, hint })
  }
  if (name === '' || name.endsWith('/')) refuse('this is no file name', 'name a file')
  if (!isText(absolute)) refuse('this name, or its folder, is not UTF-8', 'choose another name')
  try {
    return fs.realpathSync(absolute)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') {
      refuse(`it cannot be made: ${inWords(error)}`, 'choose another place')
    }
  }
  if (fs.lstatSync(absolute, { throwIfNoEntry: false })) {
    refuse('this is a symbolic link to a file that does not exist', 'name the file itself')
  }
  try {
    return path.join(fs.realpathSync(path.dirname(absolute)), path.basename(absolute))
  } catch (error) {
    return refuse(`its folder cannot be used: ${inWords(error)}`, 'make the folder first')
  }
}

/** Opens the file at `file` for writing, and keeps others from using it. Throws ImageError. */
function openLocked(file: string): number {
  let fd: number
  try {
    fd = fs.openSync(file, O_RDWR)
  } catch (error) {
    throw new ImageError('REFUSED', `it cannot be replaced: ${inWords(error)}`, {
      path: file,
      hint: 'choose another name',
    })
  }
  try {
    lockImage(fd, file, 'write')
    return fd
  } catch (error) {
    fs.closeSync(fd)
    throw namingItsMount(error)
  }
}

function create(final: string, openUnnamed = openTmpfile): Pick<Pending, 'fd' | 'temporary'> {
  try {
    return { fd: openUnnamed(path.dirname(final)), temporary: undefined }
  } catch (error) {
    if (!lacksTmpfile(error)) throw cannotCreate(error, final)
  }
  const temporary = temporaryName(final)
  removeAtEnd(temporary)
  try {
    return { fd: fs.openSync(temporary, O_RDWR | O_CREAT | O_EXCL, 0o666), temporary }
  } catch (error) {
    keepAtEnd(temporary)
    throw cannotCreate(error, final)
  }
}

const cannotCreate = (error: unknown, final: string): ImageError =>
  new ImageError('REFUSED', `no file can be made in its folder: ${inWords(error)}`, {
    path: final,
    hint: 'choose another folder',
  })

let names = 0

/** Hidden, and short enough for every file system. */
const temporaryName = (final: string): string =>
  path.join(path.dirname(final), `.vimgfs-${process.pid}-${names++}-${randomName()}`)

const randomName = (): string => Math.random().toString(36).slice(2, 8)

/** Gives the new file the mode and, as far as this user may, the owner of the file that it replaces. */
function takeOver(fd: number, replaced: number): void {
  const { mode, uid, gid } = fs.fstatSync(replaced)
  try {
    fs.fchownSync(fd, uid, gid)
  } catch {
    // It then belongs to this user, as a copy would.
  }
  fs.fchmodSync(fd, mode & 0o777)
}

/** Renames, but never replaces a file that has come meanwhile, where the file system can tell. */
function renameToNew(temporary: string, final: string): void {
  try {
    fs.linkSync(temporary, final)
  } catch (error) {
    if (!NO_LINK.has((error as NodeJS.ErrnoException).code ?? '')) throw error
    if (fs.existsSync(final)) throw Object.assign(new Error('it exists'), { code: 'EEXIST' })
    fs.renameSync(temporary, final)
  }
}
