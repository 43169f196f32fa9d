/** All formats. A new one is a folder and a row here. */
import { cowFormat } from './cow/format.js'
import type { Format, LayerSpec, ReadPart } from './format.js'
import { qcowFormat } from './qcow/format.js'
import { qcow2Format } from './qcow2/format.js'
import { filesNeededByQed, isQed } from './qed.js'
import { rawFormat } from './raw/format.js'
import { vmdkFormat } from './vmdk/format.js'
import { vpcFormat } from './vpc/format.js'

/** The formats in the order in which they are probed. Raw is the last: it remains if no other one matches. */
export const RECOGNISED: readonly Format[] = [
  cowFormat,
  qcowFormat,
  qcow2Format,
  vmdkFormat,
  vpcFormat,
]
export const RAW: Format = rawFormat as Format

/** Formats that are recognised but not supported, so that they are not shown as raw. */
export const FOREIGN: readonly {
  /** The name for QEMU's `-f`. */
  readonly name: string
  readonly suffixes: readonly string[]
  matches(head: Buffer): boolean
  readonly filesNeeded?: Format['filesNeeded']
}[] = [
  { name: 'qed', suffixes: ['.qed'], matches: isQed, filesNeeded: filesNeededByQed },
  {
    name: 'vdi',
    suffixes: ['.vdi'],
    matches: b => b.length >= 68 && b.readUInt32LE(64) === 0xbeda107f,
  },
  { name: 'vhdx', suffixes: ['.vhdx'], matches: b => startsWith(b, 'vhdxfile') },
  {
    name: 'parallels',
    suffixes: [],
    matches: b => startsWith(b, 'WithoutFreeSpace') || startsWith(b, 'WithouFreSpacExt'),
  },
]

const startsWith = (b: Buffer, text: string): boolean =>
  b.toString('latin1', 0, text.length) === text

const FORMATS: readonly Format[] = [RAW, ...RECOGNISED]

/**
 * Returns the names of the files that an image says it needs as they are; see Format.filesNeeded.
 * @param except the name of a format that does not count
 */
export const filesNeededBy = (head: Buffer, read: ReadPart, except?: string): Buffer[] =>
  [...FORMATS, ...FOREIGN]
    .filter(({ name }) => name !== except)
    .flatMap(format => format.filesNeeded?.(head, read) ?? [])

/** The names for `--format`. */
export const FORMAT_NAMES: readonly string[] = FORMATS.map(({ name }) => name)

/** The names of the formats that `vimgfs check` checks. */
export const CHECKABLE_NAMES: readonly string[] = FORMATS.filter(({ checking }) => checking).map(
  ({ name }) => name,
)

/** The names of the formats that new images can have. */
export const CREATABLE_NAMES: readonly string[] = FORMATS.filter(({ creating }) => creating).map(
  ({ name }) => name,
)

/** The names of the formats whose disks change their size. */
export const RESIZABLE_NAMES: readonly string[] = FORMATS.filter(({ resizing }) => resizing).map(
  ({ name }) => name,
)

/** Returns "a, b and c", with `last` for the "and". */
export const listed = (names: readonly string[], last: 'and' | 'or'): string =>
  `${names.slice(0, -1).join(', ')} ${last} ${names.at(-1)}`

/** For messages. */
export const FORMATS_READ = listed(FORMAT_NAMES, 'and')

const BY_NAME = new Map(FORMATS.map(format => [format.name, format]))

/** Returns the format with that name; undefined if there is none. */
export const findFormat = (name: string): Format | undefined => BY_NAME.get(name)

/** The format of scratch disks. */
export const SCRATCH_FORMAT = FORMATS.find(({ writing }) => writing?.scratch) as Format

/** Returns the format of a layer. Throws TypeError for an unknown name, which no input can cause. */
export function formatOf({ format }: Pick<LayerSpec, 'format'>): Format {
  const found = BY_NAME.get(format)
  if (!found) throw new TypeError(`there is no format "${format}"`)
  return found
}
