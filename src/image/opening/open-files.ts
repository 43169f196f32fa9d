/** The files of a chain while it is opened: which ones are open and locked, and for what. */
import fs from 'node:fs'
import { ImageError } from '../../errors.js'
import type { LayerSpec } from '../../formats/format.js'
import { backInPlace, besideImage } from '../../formats/way-out.js'
import type { FileSpec } from '../../io/file-spec.js'
import type { Folder } from '../../io/folders.js'
import { isWrittenByOthers, lockImage } from '../../io/locks.js'
import {
  type Access,
  type MemberOpener,
  closeOpened,
  type OpenedFile,
  openFirst,
  openNamed,
  WriteProtected,
} from '../../io/named-file.js'
import { fileSpec } from '../layer.js'

export class OpenFiles {
  private readonly opened: OpenedFile[] = []
  /** The files of extents that are opened for writing. */
  private readonly written: OpenedFile[] = []
  /** The archive that the image lies in: names lead only to files in it. */
  archive: MemberOpener | undefined

  /** @param takesLocks whether to take QEMU's locks. If not, other programs that write cause only a warning */
  constructor(
    private readonly takesLocks: boolean,
    private readonly warn: (text: string) => void,
  ) {}

  get count(): number {
    return this.opened.length
  }

  add(file: OpenedFile): void {
    this.opened.push(file)
  }

  has(file: OpenedFile): boolean {
    return this.opened.some(other => isSameFile(other, file))
  }

  /** Closes all but the first `count`. */
  close(count = 0): void {
    for (const file of this.opened.splice(count)) OpenFiles.close(file)
  }

  static close(file: OpenedFile): void {
    closeOpened(file)
  }

  /** Keeps others from writing the file, or from using it at all. Throws ImageInUse. */
  lock({ fd, path, source }: OpenedFile, access: Access): void {
    // Locks are for programs of this machine.
    if (source) return
    if (this.takesLocks) {
      const warning = lockImage(fd, path, access)
      if (warning !== undefined) this.warn(warning)
    } else if (isWrittenByOthers(fd)) {
      this.warn(
        `${path}: another program has it open for writing (a running machine?); what is read may be out of date or torn`,
      )
    }
  }

  partsOf(layer: LayerSpec, access: Access, allowed: readonly Folder[]): LayerFiles {
    return new LayerFiles(this, layer, access, allowed, this.warn)
  }

  addExtent(file: OpenedFile, access: Access): void {
    this.add(file)
    if (access === 'write') this.written.push(file)
    this.lock(file, access)
  }

  /** Throws ImageError for an extent of a layer below that is written: it must not change with the disk above. */
  requireUnwritten(file: OpenedFile, name: string, by: string): void {
    if (!this.written.some(other => isSameFile(other, file))) return
    OpenFiles.close(file)
    const what = `its extent "${name}" is one of the disk above it, too`
    throw new ImageError('CORRUPT', what, {
      path: by,
      hint: 'correct the extent lines of the descriptors, or mount it with -o ro',
    })
  }
}

/** Opens the other files of one layer. */
class LayerFiles {
  private readonly extentFiles: { file: OpenedFile; spec: FileSpec; access: Access }[] = []

  constructor(
    private readonly files: OpenFiles,
    private readonly layer: LayerSpec,
    private readonly access: Access,
    private readonly allowed: readonly Folder[],
    private readonly warn: (text: string) => void,
  ) {}

  openDataFile(name: string): FileSpec {
    const { path } = this.layer
    const { archive } = this.files
    const naming = {
      by: path,
      role: 'data file',
      allowed: this.allowed,
      hint: backInPlace,
      archive,
    }
    const file = openNamed(name, naming, this.access)
    const isOpen = this.files.has(file)
    this.files.add(file)
    // Writing its data would overwrite tables.
    if (isOpen) {
      throw new ImageError('CORRUPT', `its data file "${name}" is an image of its own chain`, {
        path,
        hint: 'restore the image from a copy',
      })
    }
    this.files.lock(file, this.access)
    return fileSpec(file)
  }

  openExtent(name: string, names: readonly string[], isWritable: boolean): FileSpec {
    const { layer } = this
    const access = isWritable ? this.access : 'read'
    const { archive } = this.files
    const naming = {
      by: layer.path,
      role: 'extent',
      allowed: this.allowed,
      hint: besideImage,
      archive,
    }
    const told = (_: OpenedFile, found: string) => {
      if (found !== name && found !== name.replaceAll('\\', '/')) {
        this.warn(`${layer.path}: for its extent "${name}" "${found}" is used`)
      }
      return true
    }
    const file = openFirst(names, naming, told, access) as OpenedFile
    // Many lines may name one file.
    const again = isSame(file, layer)
      ? { spec: layer, access: this.access }
      : this.extentFiles.find(({ file: other }) => isSameFile(other, file))
    if (again) {
      OpenFiles.close(file)
      if (again.access === access || again.access === 'write') return again.spec
      const what = 'one part of it may be written, and another may not'
      throw new WriteProtected(again.spec.path, what, 'mount it with -o ro')
    }
    if (this.access === 'read') this.files.requireUnwritten(file, name, layer.path)
    this.files.addExtent(file, access)
    const spec = fileSpec(file)
    this.extentFiles.push({ file, spec, access })
    return spec
  }
}

export const isSame = ({ stat, part }: OpenedFile, other: FileSpec): boolean =>
  part?.startAt === other.part?.startAt &&
  isSameStat(stat, fs.fstatSync(other.fd, { bigint: true }))

const isSameFile = (a: OpenedFile, b: OpenedFile): boolean =>
  a.part?.startAt === b.part?.startAt && isSameStat(a.stat, b.stat)

const isSameStat = (a: fs.BigIntStats, b: fs.BigIntStats): boolean =>
  a.dev === b.dev && a.ino === b.ino
