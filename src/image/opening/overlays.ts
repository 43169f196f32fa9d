/**
 * Finds images that need other files unchanged: images that name a file as their backing file, data file or extent. Writing
 * such a file breaks them.
 *
 * Only the image's folder is searched. Only the headers of its files are read, and in them only the names: an overlay that is
 * damaged, encrypted or of an unsupported format needs its backing file, too. The named files are never opened; only stat is
 * called on them, and not on a file system whose server may be dead (living-paths.ts). Nothing throws.
 */
import fs from 'node:fs'
import path from 'node:path'
import { openPlain } from '../../io/beneath.js'
import type { Folder } from '../../io/folders.js'
import { foreignMounts, statLiving } from './living-paths.js'
import { listMounts } from '../../io/mountinfo.js'
import { attempted, entriesOf, readAt } from '../../formats/beside.js'
import type { FileSpec } from '../../io/file-spec.js'
import { filesNeededBy } from '../../formats/registry.js'

/** The most files of a folder that are read: files whose names suggest an overlay, and others. */
const MAX_LIKELY = 1024
const MAX_OTHERS = 256
/** Usual suffixes of overlays. Cloud images and libvirt's images are qcow2 with any of these suffixes. */
const LIKELY_NAME = /\.(qcow|qc2|qed|cow|vmdk|img|image|raw|dd\b)|overlay|snap/i

/** How many of a file's first bytes are read: the largest header with a name at a fixed place is that of a cow image. */
const HEAD_BYTES = 8192

export interface OverlayOptions {
  /** The name of a format that does not count: it finds its images by itself. */
  readonly except?: string | undefined
}

/**
 * Returns the names of the images in `folders` that name one of `files`, sorted.
 * @param image the path of the image that `files` belong to
 * @param files all files that a mount of it writes; they do not count as users of one another
 * @param folders the folders of the image
 */
export function overlaysOf(
  image: string,
  files: readonly Pick<FileSpec, 'fd'>[],
  folders: readonly Folder[],
  options: OverlayOptions = {},
): string[] {
  const own = files.map(({ fd }) => fs.fstatSync(fd, { bigint: true }))
  const foreign = foreignMounts(own, listMounts())
  const found = folders.flatMap(folder =>
    candidatesIn(folder, image).filter(name => {
      const named = attempted(() => namesIn(folder, name, own, options)) ?? []
      return named.some(target => leadsTo(target, folder, own, foreign))
    }),
  )
  return [...new Set(found.map(name => name.toString()))].sort()
}

/** Returns file names, likely overlays first. These include libvirt's `disk.NAME`, an external snapshot of `disk.qcow2`. */
function candidatesIn(folder: Folder, image: string): Buffer[] {
  const stem = `${path.parse(image).name}.`
  const [related, likely, others]: [Buffer[], Buffer[], Buffer[]] = [[], [], []]
  for (const name of entriesOf(folder)) {
    const text = name.toString()
    if (text.startsWith(stem)) related.push(name)
    else if (LIKELY_NAME.test(text)) likely.push(name)
    else others.push(name)
  }
  return [...[...related, ...likely].slice(0, MAX_LIKELY), ...others.slice(0, MAX_OTHERS)]
}

/** Returns the names in the header of a file; none if the file is one of `own`. Throws SystemError. */
function namesIn(
  folder: Folder,
  name: Buffer,
  own: readonly fs.BigIntStats[],
  options: OverlayOptions,
): Buffer[] {
  const fd = openPlain(folder.fd, name)
  if (fd === undefined) return []
  try {
    const stat = fs.fstatSync(fd, { bigint: true })
    return isAmong(stat, own) ? [] : namesOf(fd, stat.size, options).flatMap(pathsOf)
  } finally {
    fs.closeSync(fd)
  }
}

/** Returns the names in a header, as they are there. Throws SystemError. */
function namesOf(fd: number, sizeBytes: bigint, { except }: OverlayOptions): Buffer[] {
  const head = readAt(fd, 0, HEAD_BYTES)
  const read = (at: number | bigint, length: number) => {
    if (at >= sizeBytes) return Buffer.alloc(0)
    const from = Number(at)
    const isInHead = from + length <= head.length
    return isInHead ? head.subarray(from, from + length) : readAt(fd, from, length)
  }
  return filesNeededBy(head, read, except)
}

const FILE = 'file:'
const JSON_PREFIX = 'json:'

/** Returns the paths in a name, as QEMU reads it. `name` may go on after a NUL. */
function pathsOf(name: Buffer): Buffer[] {
  const nul = name.indexOf(0)
  const plain = nul < 0 ? name : name.subarray(0, nul)
  if (plain.length === 0) return []
  const start = plain.toString('latin1', 0, JSON_PREFIX.length)
  if (start === FILE) return [plain.subarray(FILE.length)]
  if (start !== JSON_PREFIX) return [plain]
  try {
    return fileNames(JSON.parse(plain.toString('utf8', JSON_PREFIX.length))).map(text =>
      Buffer.from(text),
    )
  } catch {
    return []
  }
}

/** Returns the values of `filename` in block device options, at any depth, also as `file.filename`. */
function fileNames(options: unknown): string[] {
  if (typeof options !== 'object' || options === null) return []
  return Object.entries(options).flatMap(([key, value]) => {
    if (typeof value !== 'string') return fileNames(value)
    return /(?:^|\.)filename$/.test(key) ? [value] : []
  })
}

/** Reports whether a path leads to one of `own`. Relative paths start in the held folder, wherever that is by now. */
function leadsTo(
  target: Buffer,
  folder: Folder,
  own: readonly fs.BigIntStats[],
  foreign: ReadonlySet<string>,
): boolean {
  if (target.length === 0 || target.includes(0)) return false
  const stat = attempted(() => statLiving(target, folder.fd, foreign))
  return stat !== undefined && isAmong(stat, own)
}

const isAmong = ({ dev, ino }: fs.BigIntStats, files: readonly fs.BigIntStats[]): boolean =>
  files.some(other => other.dev === dev && other.ino === ino)
