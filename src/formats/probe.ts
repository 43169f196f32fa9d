/** Which format a file has, by its first bytes. */
import path from 'node:path'
import { ImageError } from '../errors.js'
import type { Store } from '../io/store.js'
import { type Format, PROBED_BYTES } from './format.js'
import { FORMATS_READ, findFormat, RECOGNISED } from './registry.js'

/** Formats that are recognised, so that they are not shown as if they were raw, but not read. */
const FOREIGN: {
  name: string
  suffixes: readonly string[]
  matches: (head: Buffer) => boolean
}[] = [
  { name: 'qed', suffixes: ['.qed'], matches: b => startsWith(b, 'QED\0') },
  {
    name: 'vdi',
    suffixes: ['.vdi'],
    matches: b => b.length >= 68 && b.readUInt32LE(64) === 0xbeda107f,
  },
  { name: 'vhdx', suffixes: ['.vhdx'], matches: b => startsWith(b, 'vhdxfile') },
  { name: 'vhd', suffixes: ['.vhd'], matches: b => startsWith(b, 'conectix') },
  {
    name: 'parallels',
    suffixes: [],
    matches: b => startsWith(b, 'WithoutFreeSpace') || startsWith(b, 'WithouFreSpacExt'),
  },
]

/** Names that promise another format than raw. */
const IMAGE_SUFFIXES = [...RECOGNISED, ...FOREIGN].flatMap(({ suffixes }) => suffixes)

/** A disk has a sector at least. */
const SECTOR_BYTES = 512

/** Returns the format of `store`. Throws ImageError for a format that is known but not read. */
export function probe(store: Store): Format {
  const buffer = Buffer.alloc(PROBED_BYTES)
  const head = buffer.subarray(0, store.read(buffer, 0, buffer.length, 0))
  const foreign = foreignFormat(head)
  if (foreign !== undefined) {
    throw new ImageError('UNSUPPORTED', `${foreign} images are not read yet`, {
      path: store.path,
      hint: `${FORMATS_READ} are; make a copy that is read with qemu-img convert -f ${foreign === 'vhd' ? 'vpc' : foreign} -O qcow2`,
    })
  }
  return (
    RECOGNISED.find(format => format.matches(head)) ??
    RECOGNISED.find(format => format.matchesStore?.(store)) ??
    RAW
  )
}

const RAW = findFormat('raw') as Format

/** Returns the name of the format that an image with these first bytes is probed as, read or not. */
export const probedName = (head: Buffer): string =>
  foreignFormat(head) ?? (RECOGNISED.find(format => format.matches(head)) ?? RAW).name

const foreignFormat = (head: Buffer): string | undefined =>
  FOREIGN.find(format => format.matches(head))?.name

/** Does the same for the file that the user named: what cannot be a raw disk is not taken for one. */
export function probeGiven(store: Store): Format {
  const format = probe(store)
  if (format !== RAW) return format
  const suffix = path.extname(store.path).toLowerCase()
  const problem = IMAGE_SUFFIXES.includes(suffix)
    ? `this is no ${suffix.slice(1)} image: nothing at its start says so`
    : store.sizeBytes < SECTOR_BYTES
      ? `this is no disk image: it has ${store.sizeBytes} bytes and no known format`
      : undefined
  if (problem === undefined) return format
  for (const { explainUnmatched } of RECOGNISED) {
    const explained = explainUnmatched?.(store.path)
    if (explained) throw explained
  }
  throw new ImageError('NOT_AN_IMAGE', problem, {
    path: store.path,
    hint: 'restore it from a copy, or show it as it is with --format raw',
  })
}

const startsWith = (b: Buffer, text: string): boolean =>
  b.toString('latin1', 0, text.length) === text
