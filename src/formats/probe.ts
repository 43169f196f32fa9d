/** Which format a file has, by its first bytes. */
import path from 'node:path'
import { ImageError } from '../errors.js'
import type { Store } from '../io/store.js'
import { MAGIC } from './qcow2/header.js'
import { isDescriptor } from './vmdk/descriptor.js'
import { lonePart } from './vmdk/lone-part.js'
import { extentKind } from './vmdk/parts.js'

export const FORMATS = ['raw', 'cow', 'qcow', 'qcow2', 'vmdk'] as const
export type Format = (typeof FORMATS)[number]
/** For messages. */
export const FORMATS_READ = `${FORMATS.slice(0, -1).join(', ')} and ${FORMATS.at(-1)}`

/** What is recognised, so that it is not shown as if it were raw, but not read. */
const FOREIGN: { name: string; matches: (head: Buffer) => boolean }[] = [
  { name: 'qed', matches: b => startsWith(b, 'QED\0') },
  { name: 'vdi', matches: b => b.length >= 68 && b.readUInt32LE(64) === 0xbeda107f },
  { name: 'vhdx', matches: b => startsWith(b, 'vhdxfile') },
  { name: 'vhd', matches: b => startsWith(b, 'conectix') },
  {
    name: 'parallels',
    matches: b => startsWith(b, 'WithoutFreeSpace') || startsWith(b, 'WithouFreSpacExt'),
  },
]

/** Names that promise another format than raw. */
const IMAGE_SUFFIXES = ['.qcow2', '.qcow', '.vmdk', '.vdi', '.vhd', '.vhdx', '.qed', '.cow']

/** A disk has a sector at least. */
const SECTOR_BYTES = 512

/** How many of an image's first bytes tell its format. */
export const PROBED_BYTES = 512

/** The format of `store`. Throws ImageError for a format that is known but not read. */
export function probe(store: Store): Format {
  const head = Buffer.alloc(PROBED_BYTES)
  const bytes = head.subarray(0, store.read(head, 0, head.length, 0))
  const foreign = foreignFormat(bytes)
  if (foreign !== undefined) {
    throw new ImageError('UNSUPPORTED', `${foreign} images are not read yet`, {
      path: store.path,
      hint: `${FORMATS_READ} are; make a copy that is read with qemu-img convert -f ${foreign === 'vhd' ? 'vpc' : foreign} -O qcow2`,
    })
  }
  return formatOf(bytes)
}

/** The name of the format that an image with these first bytes is probed as, read or not. */
export const probedName = (head: Buffer): string => foreignFormat(head) ?? formatOf(head)

const foreignFormat = (head: Buffer): string | undefined =>
  FOREIGN.find(format => format.matches(head))?.name

function formatOf(bytes: Buffer): Format {
  if (bytes.length >= 4 && bytes.readUInt32BE(0) === MAGIC) {
    return bytes.length >= 8 && bytes.readUInt32BE(4) === 1 ? 'qcow' : 'qcow2'
  }
  // Programs on little-endian machines wrote the first version of it backwards.
  if (startsWith(bytes, 'OOOM') || startsWith(bytes, 'MOOO')) return 'cow'
  return isVmdk(bytes) ? 'vmdk' : 'raw'
}

/** The same for the file that the user named: what cannot be a raw disk is not taken for one. */
export function probeGiven(store: Store): Format {
  const format = probe(store)
  if (format === 'raw') {
    const suffix = path.extname(store.path).toLowerCase()
    const problem = IMAGE_SUFFIXES.includes(suffix)
      ? `this is no ${suffix.slice(1)} image: nothing at its start says so`
      : store.sizeBytes < SECTOR_BYTES
        ? `this is no disk image: it has ${store.sizeBytes} bytes and no known format`
        : undefined
    if (problem) {
      const part = lonePart(store.path)
      if (part) throw part
      throw new ImageError('NOT_AN_IMAGE', problem, {
        path: store.path,
        hint: 'restore it from a copy, or show it as it is with --format raw',
      })
    }
  }
  return format
}

const isVmdk = (b: Buffer): boolean => extentKind(b) !== undefined || isDescriptor(b)

const startsWith = (b: Buffer, text: string): boolean =>
  b.toString('latin1', 0, text.length) === text
