/** All formats. A new one is a folder and a row here. */
import { cowFormat } from './cow/format.js'
import type { Format, LayerSpec } from './format.js'
import { qcowFormat } from './qcow/format.js'
import { qcow2Format } from './qcow2/format.js'
import { rawFormat } from './raw/format.js'
import { vmdkFormat } from './vmdk/format.js'
import { vpcFormat } from './vpc/format.js'

/** In the order in which they are recognised. Raw is what remains where none of them matches. */
export const RECOGNISED: readonly Format[] = [
  cowFormat,
  qcowFormat,
  qcow2Format,
  vmdkFormat,
  vpcFormat,
]
export const RAW: Format = rawFormat as Format

/** Formats that are recognised, so that they are not shown as if they were raw, but not read. */
export const FOREIGN: readonly {
  /** As QEMU's `-f` takes it. */
  readonly name: string
  readonly suffixes: readonly string[]
  matches(head: Buffer): boolean
}[] = [
  { name: 'qed', suffixes: ['.qed'], matches: b => startsWith(b, 'QED\0') },
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

/** As `--format` takes them. */
export const FORMAT_NAMES: readonly string[] = FORMATS.map(({ name }) => name)

/** Those that `vimgfs check` checks. */
export const CHECKABLE_NAMES: readonly string[] = FORMATS.filter(({ checking }) => checking).map(
  ({ name }) => name,
)

/** Returns "a, b and c", with `last` for the "and". */
export const listed = (names: readonly string[], last: 'and' | 'or'): string =>
  `${names.slice(0, -1).join(', ')} ${last} ${names.at(-1)}`

/** For messages. */
export const FORMATS_READ = listed(FORMAT_NAMES, 'and')

const BY_NAME = new Map(FORMATS.map(format => [format.name, format]))

/** Returns the format of that name; undefined where there is none. */
export const findFormat = (name: string): Format | undefined => BY_NAME.get(name)

/** Returns the format of a layer. Throws TypeError for a name that is not known: no input leads there. */
export function formatOf({ format }: Pick<LayerSpec, 'format'>): Format {
  const found = BY_NAME.get(format)
  if (!found) throw new TypeError(`there is no format "${format}"`)
  return found
}
