/**
 * Disks in uncompressed tar archives (.ova), which are read where they lie. A disk's backing files and extents are other files
 * of the same archive: its names lead nowhere else.
 */
import fs from 'node:fs'
import { constants } from 'node:os'
import { ImageError, printable, SystemError } from '../../errors.js'
import { PROBED_BYTES } from '../../formats/format.js'
import { probedName } from '../../formats/probe.js'
import { RECOGNISED } from '../../formats/registry.js'
import { givenName, memberOfPath, pathInArchive, splitArchiveName } from '../../io/archive-name.js'
import { pathOfDescriptor } from '../../io/beneath.js'
import { closeFolders } from '../../io/folders.js'
import {
  type Access,
  closeOpened,
  type MemberOpener,
  type Naming,
  type OpenedFile,
  type OpenedImage,
  openImage,
  WriteProtected,
} from '../../io/named-file.js'
import type { FileSpec } from '../../io/file-spec.js'
import { PartStore } from '../../io/part-store.js'
import type { Store } from '../../io/store.js'
import { isTar, memberName, membersOf, type TarMember } from '../../io/tar.js'
import { isAddress, kindOfAddress } from '../../sources/registry.js'
import { hasImageSuffix } from '../file-names.js'
import { fileSpec, storeOf } from '../layer.js'

const { ENOENT } = constants.errno
/** Names of files that are archives if their first bytes say so. */
const ARCHIVE_SUFFIX = /\.(ova|tar)$/i
/** The most names that a message lists. */
const MAX_LISTED = 20

/** An image as the user named it; with the archive that it lies in. */
export interface NamedImage extends OpenedImage {
  readonly archive?: Archive
}

/**
 * Opens the image that the user named: a file, or a disk in an archive. Throws ImageError, and then leaves nothing open;
 * WriteProtected for a disk in an archive that is to be written.
 */
export function openNamedImage(
  name: string,
  access: Access,
  allowPaths: readonly string[],
): NamedImage {
  const named = splitArchiveName(name)
  if (!named && !ARCHIVE_SUFFIX.test(isAddress(name) ? withoutQuery(name) : name)) {
    return openImage(name, access, allowPaths)
  }
  const archive = Archive.open(named?.archive ?? name, named !== undefined)
  if (!archive) return openImage(name, access, allowPaths)
  try {
    const member = archive.choose(named?.member)
    if (access === 'write') throw archive.neverWritten(member)
    return { ...archive.openMember(member), folders: [], own: [], archive }
  } catch (error) {
    archive.close()
    throw error
  }
}

const withoutQuery = (address: string): string => address.split(/[?#]/, 1)[0] as string

/** Reports whether FILE::MEMBER, which is no file, names a disk in an archive of this machine. */
export function isInArchive(name: string): boolean {
  const named = splitArchiveName(name)
  if (!named) return false
  try {
    const archive = Archive.open(named.archive, true)
    try {
      return archive?.has(named.member) === true
    } finally {
      archive?.close()
    }
  } catch {
    // Opening it reports what is wrong.
    return true
  }
}

/** Throws ImageError if an image cannot be the base of another one, because it lies in an archive. */
export function requireOwnFile({ path, part }: FileSpec): void {
  if (!part) return
  throw new ImageError('REFUSED', 'it lies in an archive, so no image can stand on it', {
    path,
    hint: 'take it out of the archive',
  })
}

/** An archive that is open while the files in it are opened. */
export class Archive implements MemberOpener {
  /** By their names. Of several with one name the last one counts, as when they are extracted. */
  private readonly members: ReadonlyMap<string, TarMember>

  private constructor(
    private readonly whole: OpenedFile,
    private readonly address: string | undefined,
    private readonly store: Store,
  ) {
    this.members = new Map(membersOf(store).map(member => [member.name, member]))
  }

  /**
   * Opens an archive and reads its list. Throws ImageError.
   * @param isStated whether the user says that it is one. If not, undefined is returned for any other file
   */
  static open(name: string, isStated: boolean): Archive | undefined {
    const { folders, own: _, ...whole } = openImage(name, 'read', [])
    closeFolders(folders)
    try {
      const store = storeOf(fileSpec(whole))
      if (isTar(store)) return new Archive(whole, isAddress(name) ? name : undefined, store)
      if (isStated) {
        throw new ImageError('NOT_AN_IMAGE', 'this is no uncompressed tar archive', {
          path: whole.path,
          hint: 'unpack it, and name the disk',
        })
      }
    } catch (error) {
      closeOpened(whole)
      throw error
    }
    closeOpened(whole)
    return undefined
  }

  close(): void {
    closeOpened(this.whole)
  }

  has(member: string): boolean {
    return this.members.has(memberName(member))
  }

  /** Returns the member of that name; without a name the only disk. Throws ImageError. */
  choose(name: string | undefined): TarMember {
    if (name !== undefined) return this.member(name)
    const disks = this.disks()
    const files = [...this.members.values()].filter(({ kind }) => kind === 'file')
    const [only, ...others] = disks.length > 0 ? disks : files
    if (only && others.length === 0) return only
    const what = disks.length > 0 ? `it has ${disks.length} disks` : 'it has no file that is a disk'
    const among = disks.length > 0 ? disks : files
    const hint = among.length > 0 ? `name one of ${this.listed(among)}` : 'name another archive'
    throw new ImageError('REFUSED', what, { path: this.path, hint })
  }

  neverWritten({ name }: TarMember): WriteProtected {
    const hint = `mount it with -o scratch, or take it out: tar -xf ${printable(this.path)} ${printable(name)}`
    return new WriteProtected(this.pathOf(name), 'it lies in an archive, which is only read', hint)
  }

  openMember(member: TarMember): OpenedFile {
    const { name, startAt, sizeBytes } = member
    const path = this.pathOf(name)
    const refuse = (code: 'UNSUPPORTED' | 'CORRUPT' | 'REFUSED', what: string, hint: string) => {
      throw new ImageError(code, what, { path, hint })
    }
    if (member.kind === 'sparse') {
      const hint = `take it out: tar -xf ${printable(this.path)} ${printable(name)}`
      refuse('UNSUPPORTED', 'it lies in the archive in pieces, without its holes (tar -S)', hint)
    }
    if (member.kind === 'other') refuse('REFUSED', 'it is no regular file', 'name a disk')
    if (startAt + sizeBytes > this.store.sizeBytes) {
      refuse('CORRUPT', 'the archive ends before the end of this file', 'restore it from a copy')
    }
    const part = { path: this.path, startAt, sizeBytes }
    return { ...this.openAgain(), path, part }
  }

  /** Opens what an image in this archive names, for reading. */
  openNamed(name: string, { by, role }: Naming): OpenedFile {
    const what = `its ${role} "${name}"`
    const outside = () =>
      new ImageError('REFUSED', `${what} does not lie in the archive with it`, {
        path: by,
        hint: 'take all files out of the archive, and name the disk',
      })
    if (name.startsWith('/')) throw outside()
    const folder = memberOfPath(by, this.path).split('/').slice(0, -1)
    for (const part of memberName(name).split('/')) {
      if (part !== '..') folder.push(part)
      else if (folder.pop() === undefined) throw outside()
    }
    const member = this.members.get(folder.join('/'))
    if (member) return this.openMember(member)
    const hint = 'take the disk out of the archive, and put the file beside it'
    const cause = new SystemError('open', ENOENT, folder.join('/'))
    throw new ImageError('MISSING', `${what} is not in the archive`, { path: by, hint }, { cause })
  }

  namesBeside(path: string): string[] {
    const own = memberOfPath(path, this.path)
    const folder = own.slice(0, own.lastIndexOf('/') + 1)
    return [...this.members.keys()]
      .filter(name => name.startsWith(folder))
      .map(name => name.slice(folder.length))
      .filter(name => !name.includes('/'))
  }

  private get path(): string {
    return this.whole.path
  }

  private pathOf(member: string): string {
    return pathInArchive(this.path, member)
  }

  private member(name: string): TarMember {
    const found = this.members.get(memberName(name))
    if (found) return found
    const disks = this.disks()
    const hint =
      disks.length > 0 ? `it has ${this.listed(disks)}` : 'tar -tf lists what is in the archive'
    const what = `there is no "${printable(name)}" in it`
    throw new ImageError('MISSING', what, { path: this.path, hint })
  }

  /** Returns the files that are disks by their first bytes, or by their names; parts of vmdk disks are none. */
  private disks(): TarMember[] {
    return [...this.members.values()].filter(({ name, kind, startAt, sizeBytes }) => {
      const path = this.pathOf(name)
      if (kind === 'other' || RECOGNISED.some(format => format.explainUnmatched?.(path)))
        return false
      if (hasImageSuffix(name)) return true
      if (kind === 'sparse') return false
      const head = Buffer.alloc(Math.min(PROBED_BYTES, sizeBytes))
      const store = new PartStore(this.store, path, startAt, sizeBytes)
      return probedName(head.subarray(0, store.read(head, 0, head.length, 0))) !== 'raw'
    })
  }

  private listed(members: readonly TarMember[]): string {
    const names = members.map(({ name }) => printable(givenName(this.whole.path, name)))
    const more = names.length - MAX_LISTED
    return `${names.slice(0, MAX_LISTED).join(', ')}${more > 0 ? ` and ${more} more` : ''}`
  }

  private openAgain(): OpenedFile {
    const { address, whole } = this
    const kind = address === undefined ? undefined : kindOfAddress(address)
    if (kind && address !== undefined) return kind.open(address, 'read')
    const fd = fs.openSync(pathOfDescriptor(whole.fd), fs.constants.O_RDONLY)
    return { ...whole, fd, stat: fs.fstatSync(fd, { bigint: true }) }
  }
}
