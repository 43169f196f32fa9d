/**
 * The folder of the cache: a folder for each object, by its address and its validator, with its blocks (block-file.ts) and what
 * is known of it. An object's folder appears whole or not at all.
 */
import { createHash, randomBytes } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { ImageError, inWords } from '../../errors.js'
import { isLockedByOthers, lockShared } from '../../io/libc.js'
import { shownAddress } from '../address.js'
import { type BlockFiles, ENTRY_BYTES } from './block-file.js'

/** The facts about an object. */
export interface About {
  /** As it may be shown. */
  readonly address: string
  /** Tells this object from others that have the address at other times. */
  readonly validator: string
  readonly sizeBytes: number
  readonly blockBytes: number
  /** In seconds since 1970, as the server says; undefined if it does not. */
  readonly modifiedSeconds: number | undefined
}

export interface OpenedObject {
  readonly about: About
  readonly files: BlockFiles
}

export interface ListedObject {
  readonly about: About
  /** The space that its blocks take. */
  readonly allocatedBytes: number
  /** When it was opened last, in milliseconds since 1970. */
  readonly openedMs: number
  readonly isInUse: boolean
  readonly folder: string
}

/** The parameters of presigned addresses, which are other ones each time. */
const SIGNATURE =
  /^(x-amz-.*|x-goog-.*|signature|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid|sig|s[a-z]|sk[a-z]+)$/i
/** The most bytes of the file that tells of an object. */
const MAX_ABOUT_BYTES = 64 * 1024

/** Returns the address by which an object is found in the cache: that of a presigned one without its signature. */
export function cacheAddress(address: string): string {
  const url = new URL(address)
  const isSigned = [...url.searchParams.keys()].some(name => /signature$|^sig$/i.test(name))
  const names = [...url.searchParams.keys()].filter(name => isSigned && SIGNATURE.test(name))
  for (const name of names) url.searchParams.delete(name)
  url.hash = ''
  url.username = ''
  return url.href
}

const hash = (text: string): string => createHash('sha256').update(text).digest('hex').slice(0, 32)

export class CacheFolder {
  private constructor(readonly path: string) {}

  /** Opens the cache, and makes it if it is not there. Throws ImageError. */
  static open(folder: string): CacheFolder {
    const objects = path.join(folder, 'objects')
    try {
      fs.mkdirSync(objects, { recursive: true, mode: 0o700 })
    } catch (error) {
      throw unusable(folder, inWords(error))
    }
    const cache = new CacheFolder(folder)
    cache.requireOwn()
    return cache
  }

  /** Returns the cache if it is there. Throws ImageError. */
  static find(folder: string): CacheFolder | undefined {
    if (!fs.existsSync(path.join(folder, 'objects'))) return undefined
    return CacheFolder.open(folder)
  }

  /** Others could put in what they like. */
  private requireOwn(): void {
    const { uid, mode } = fs.statSync(path.join(this.path, 'objects'))
    if (uid !== process.geteuid?.()) throw unusable(this.path, 'it belongs to another user')
    if ((mode & 0o022) !== 0) throw unusable(this.path, 'other users may write it')
  }

  private get objects(): string {
    return path.join(this.path, 'objects')
  }

  /** Opens the files of an object, and makes them if they are not there. Throws ImageError. */
  openObject(address: string, about: About): OpenedObject {
    const folder = path.join(
      this.objects,
      `${hash(cacheAddress(address))}-${hash(about.validator)}`,
    )
    for (let tries = 0; ; tries++) {
      const known = openFiles(folder)
      if (known && fits(known.about, about)) return known
      if (known) closeFiles(known.files)
      if (tries > 2) throw unusable(this.path, 'its files cannot be made')
      try {
        this.make(folder, about)
      } catch (error) {
        throw unusable(this.path, inWords(error))
      }
    }
  }

  /** Opens the object at an address that was opened last; undefined if there is none. */
  openLast(address: string): OpenedObject | undefined {
    const start = `${hash(cacheAddress(address))}-`
    const [last] = this.names()
      .filter(name => name.startsWith(start))
      .map(name => path.join(this.objects, name))
      .sort((a, b) => openedMs(b) - openedMs(a))
    return last === undefined ? undefined : openFiles(last)
  }

  /** Reports whether blocks of some object at the address are here. */
  knows(address: string): boolean {
    const start = `${hash(cacheAddress(address))}-`
    return this.names().some(name => name.startsWith(start))
  }

  list(): ListedObject[] {
    return this.names().flatMap(name => {
      const folder = path.join(this.objects, name)
      const opened = openFiles(folder, false)
      if (!opened) return []
      const { files, about } = opened
      try {
        const allocatedBytes = fs.fstatSync(files.data).blocks * 512
        const isInUse = isLockedByOthers(files.index, 0)
        return [{ about, allocatedBytes, openedMs: openedMs(folder), isInUse, folder }]
      } finally {
        closeFiles(files)
      }
    })
  }

  /** Removes an object. Who has it open goes on with it. */
  remove({ folder }: Pick<ListedObject, 'folder'>): void {
    const aside = path.join(this.objects, `.old-${randomBytes(8).toString('hex')}`)
    fs.renameSync(folder, aside)
    fs.rmSync(aside, { recursive: true, force: true })
  }

  private names(): string[] {
    return fs.readdirSync(this.objects).filter(name => /^[0-9a-f]{32}-[0-9a-f]{32}$/.test(name))
  }

  private make(folder: string, about: About): void {
    const made = path.join(this.objects, `.new-${randomBytes(8).toString('hex')}`)
    fs.mkdirSync(made, { mode: 0o700 })
    try {
      const blocks = Math.ceil(about.sizeBytes / about.blockBytes)
      for (const [name, bytes] of [
        ['data', about.sizeBytes],
        ['index', blocks * ENTRY_BYTES],
      ] as const) {
        fs.writeFileSync(path.join(made, name), '', { mode: 0o600 })
        fs.truncateSync(path.join(made, name), bytes)
      }
      const shown = { ...about, address: shownAddress(about.address) }
      fs.writeFileSync(path.join(made, 'about.json'), JSON.stringify(shown), { mode: 0o600 })
      if (fs.existsSync(folder)) this.remove({ folder })
      fs.renameSync(made, folder)
    } catch (error) {
      fs.rmSync(made, { recursive: true, force: true })
      // Another process was faster.
      if (!['EEXIST', 'ENOTEMPTY', 'ENOENT'].includes((error as NodeJS.ErrnoException).code ?? ''))
        throw error
    }
  }
}

/** Opens the files in an object's folder; undefined if they are not as they must be. */
function openFiles(folder: string, isUsed = true): OpenedObject | undefined {
  const flags = fs.constants.O_RDWR | fs.constants.O_NOFOLLOW
  const opened: number[] = []
  try {
    const about = parseAbout(path.join(folder, 'about.json'))
    const data = fs.openSync(path.join(folder, 'data'), flags)
    opened.push(data)
    const index = fs.openSync(path.join(folder, 'index'), flags)
    opened.push(index)
    const blocks = Math.ceil(about.sizeBytes / about.blockBytes)
    const isWhole =
      fs.fstatSync(data).size === about.sizeBytes &&
      fs.fstatSync(index).size === blocks * ENTRY_BYTES
    if (!isWhole) throw new Error('a file has another size')
    if (isUsed) {
      lockShared(index, 0)
      fs.utimesSync(folder, new Date(), new Date())
    }
    return { about, files: { data, index } }
  } catch {
    for (const fd of opened) fs.closeSync(fd)
    return undefined
  }
}

export function closeFiles({ data, index }: BlockFiles): void {
  fs.closeSync(data)
  fs.closeSync(index)
}

/** Throws if the file does not say what it must. */
function parseAbout(file: string): About {
  if (fs.statSync(file).size > MAX_ABOUT_BYTES) throw new Error('too large')
  const about = JSON.parse(fs.readFileSync(file, 'utf8')) as About
  const { address, validator, sizeBytes, blockBytes } = about
  const isSound =
    typeof address === 'string' &&
    typeof validator === 'string' &&
    Number.isSafeInteger(sizeBytes) &&
    sizeBytes > 0 &&
    Number.isSafeInteger(blockBytes) &&
    blockBytes === blockBytesOf(sizeBytes)
  if (!isSound) throw new Error('damaged')
  return about
}

const fits = (one: About, other: About): boolean =>
  one.validator === other.validator &&
  one.sizeBytes === other.sizeBytes &&
  one.blockBytes === other.blockBytes

function openedMs(folder: string): number {
  return fs.statSync(folder, { throwIfNoEntry: false })?.mtimeMs ?? 0
}

const BLOCK_BYTES = 64 * 1024
const MOST_BLOCKS = 2 ** 24
/** The most bytes that an object may have: more than any disk, so that no server makes the index larger. */
export const MAX_OBJECT_BYTES = 256 * 2 ** 40

/** Returns the size of an object's blocks: 64 KiB, but more for objects of more than 1 TiB, so that the index stays small. */
export function blockBytesOf(sizeBytes: number): number {
  let bytes = BLOCK_BYTES
  while (sizeBytes / bytes > MOST_BLOCKS) bytes *= 2
  return bytes
}

const unusable = (folder: string, why: string): ImageError =>
  new ImageError('REFUSED', `this folder cannot be the cache: ${why}`, {
    path: folder,
    hint: 'name another one with --cache-dir, or say --no-cache',
  })
