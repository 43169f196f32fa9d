/**
 * Finds the child disks of an image. Each child holds only the differences from the image at the time when the child was
 * made, so writing the image breaks them all.
 *
 * Children are searched where parents are searched (see parent.ts): beside the image. The names in descriptors are compared
 * and never opened. A descriptor that cannot be read is no reason to refuse anything, so nothing throws. In doubt, a disk
 * counts as a child.
 */
import fs from 'node:fs'
import path from 'node:path'
import { openPlain } from '../../io/beneath.js'
import type { Folder } from '../../io/folders.js'
import { closeFile, O_PATH, openAt } from '../../io/libc.js'
import { attempted, entriesOf, readAt } from '../beside.js'
import type { FileSpec } from '../../io/file-spec.js'
import { MAX_VMDK_DESCRIPTOR_BYTES } from '../limits.js'
import { isDescriptor } from './descriptor.js'
import type { VmdkSpec } from './open.js'
import { parentNames } from './parent.js'
import { extentKind } from './parts.js'
import { keyValue, readText, textBytes } from './text.js'
import { SECTOR_BYTES } from '../../sector.js'
import { SPARSE_FIELD_AT } from './sparse-header.js'

const { O_DIRECTORY, O_NOFOLLOW } = fs.constants

/** The most files of a folder that are read: those with names of disks, and others. */
const MAX_FILES = 4096
const MAX_OTHERS = 256
/** The names of disks contain this. Redo logs have another suffix, as in `disk.vmdk.REDO_x`. */
const DISK_NAME = /\.vmdk|redo/i
/** The folder in which VirtualBox puts the children of a disk in the VM's folder. */
const SNAPSHOTS = Buffer.from('Snapshots')

/**
 * Returns the sorted names of the disk files in `folders` that name `image` as their parent. The folders are those of the
 * image, by its given name and with symbolic links resolved. The parentCID does not matter: a child whose parent has changed
 * before may still be rescued.
 */
export function childrenOf(
  image: Pick<FileSpec, 'path' | 'fd'>,
  { descriptor }: Pick<VmdkSpec, 'descriptor'>,
  folders: readonly Folder[],
): string[] {
  const own: Image = {
    stat: fs.fstatSync(image.fd, { bigint: true }),
    names: new Set(namesOf(image.path).map(name => path.basename(name))),
    uuid: uuidOf(descriptor?.ddb['uuid.image']),
  }
  const found = folders.flatMap(folder => [
    ...disksIn(folder).filter(file => isChild(file, folder, own)),
    ...snapshotsIn(folder, own),
  ])
  return [...new Set(found.map(file => file.toString()))].sort()
}

interface Image {
  readonly stat: fs.BigIntStats
  /** The names without folders. */
  readonly names: ReadonlySet<string>
  readonly uuid: string | undefined
}

/** Returns the given name, and the name with symbolic links resolved. */
function namesOf(file: string): string[] {
  const given = path.resolve(file)
  return [given, attempted(() => fs.realpathSync(given)) ?? given]
}

/** Returns the names of files that may be disks, as bytes: they may have no known encoding. */
function disksIn(folder: Folder): Buffer[] {
  const names = entriesOf(folder)
  const isDisk = (name: Buffer) => DISK_NAME.test(name.toString('latin1'))
  const disks = names.filter(isDisk).sort(Buffer.compare).slice(0, MAX_FILES)
  if (names.length > MAX_FILES) return disks
  const others = names.filter(name => !isDisk(name)).sort(Buffer.compare)
  return [...disks, ...others.slice(0, MAX_OTHERS)]
}

/** Returns the children in the folder of VirtualBox's snapshots, unless that folder is a link. */
function snapshotsIn({ fd, path: above }: Folder, own: Image): Buffer[] {
  const inner = openAt(fd, SNAPSHOTS, O_PATH | O_NOFOLLOW | O_DIRECTORY)
  if (inner < 0) return []
  const folder = { fd: inner, path: `${above}/${SNAPSHOTS}` }
  try {
    const found = disksIn(folder).filter(file => isChild(file, folder, own))
    return found.map(file => Buffer.concat([SNAPSHOTS, Buffer.from('/'), file]))
  } finally {
    closeFile(inner)
  }
}

function isChild(name: Buffer, folder: Folder, image: Image): boolean {
  const text = attempted(() => readDescriptor(folder, name, image))
  if (!text) return false
  const { parentHint, parentUuid } = parentOf(text)
  if (image.uuid !== undefined && uuidOf(parentUuid) === image.uuid) return true
  if (!parentHint) return false
  return parentNames(parentHint).some(
    hint =>
      image.names.has(path.basename(hint)) || isSame(path.resolve(pathOf(folder), hint), image),
  )
}

/** The lines that matter here, and the one that gives the encoding. */
const LINES = /^[ \t]*(?:encoding|parentFileNameHint|ddb\.uuid\.parent)[ \t]*=[^\r\n]*/gim
/** The most such lines that are read: a descriptor has each once. */
const MAX_LINES = 64

/** Reads no other lines: a disk is a child even if its extents are damaged or of an unknown kind. */
function parentOf(text: Buffer): {
  parentHint: string | undefined
  parentUuid: string | undefined
} {
  const matches = textBytes(text).toString('latin1').match(LINES) ?? []
  const lines = Buffer.from(matches.slice(0, MAX_LINES).join('\n'), 'latin1')
  const keys = new Map<string, string>()
  for (const line of readText(lines, 'encoding').lines) {
    const { key, value } = keyValue(line) as { key: string; value: string }
    // If a key occurs twice, the first one counts, as in descriptor.ts.
    if (!keys.has(key.toLowerCase())) keys.set(key.toLowerCase(), value)
  }
  return {
    parentHint: keys.get('parentfilenamehint'),
    parentUuid: keys.get('ddb.uuid.parent'),
  }
}

/** Returns a UUID in a form to compare; undefined for none, which VirtualBox writes for a disk without parent. */
function uuidOf(text: string | undefined): string | undefined {
  const plain = text?.replace(/[{}]/g, '').toLowerCase()
  return plain === undefined || /^[0-]*$/.test(plain) ? undefined : plain
}

const pathOf = (folder: Folder): string => Buffer.from(folder.path, 'latin1').toString()

/** Reports whether `file` is the image. It only calls stat, whatever the name leads to. */
function isSame(file: string, { stat }: Image): boolean {
  const other = attempted(() => fs.statSync(file, { bigint: true }))
  return other?.dev === stat.dev && other.ino === stat.ino
}

/**
 * Returns the descriptor of a file that is one or contains one; undefined if there is none, or if the file is `image`. It does
 * not read tables: a disk with damaged tables is a child, too.
 */
function readDescriptor(folder: Folder, name: Buffer, image: Image): Buffer | undefined {
  // Skip links: they are other names of files elsewhere.
  const fd = openPlain(folder.fd, name)
  if (fd === undefined) return undefined
  try {
    const stat = fs.fstatSync(fd, { bigint: true })
    if (stat.dev === image.stat.dev && stat.ino === image.stat.ino) {
      return undefined
    }
    const sizeBytes = Number(stat.size)
    const head = readAt(fd, 0, Math.min(sizeBytes, SECTOR_BYTES))
    const kind = extentKind(head)
    if (kind === undefined) {
      const isText = sizeBytes <= MAX_VMDK_DESCRIPTOR_BYTES && isDescriptor(head)
      return isText ? readAt(fd, 0, sizeBytes) : undefined
    }
    if (kind !== 'sparse' || head.length < SECTOR_BYTES) return undefined
    const offset = Number(head.readBigUInt64LE(SPARSE_FIELD_AT.descriptorOffset)) * SECTOR_BYTES
    const bytes = Number(head.readBigUInt64LE(SPARSE_FIELD_AT.descriptorSize)) * SECTOR_BYTES
    if (offset >= sizeBytes) return undefined
    return readAt(fd, offset, Math.min(bytes, sizeBytes - offset, MAX_VMDK_DESCRIPTOR_BYTES))
  } finally {
    fs.closeSync(fd)
  }
}
