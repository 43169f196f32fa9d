/** All formats. A new one is a folder and a row here. */
import { cowFormat } from './cow/format.js'
import type { Format, LayerSpec } from './format.js'
import { qcowFormat } from './qcow/format.js'
import { qcow2Format } from './qcow2/format.js'
import { rawFormat } from './raw/format.js'
import { vmdkFormat } from './vmdk/format.js'

/** In the order in which they are recognised; raw matches everything, so it is last. */
const FORMATS: readonly Format[] = [cowFormat, qcowFormat, qcow2Format, vmdkFormat, rawFormat]

/** As `--format` takes them. */
export const FORMAT_NAMES: readonly string[] = ['raw', ...FORMATS.map(({ name }) => name)].slice(
  0,
  FORMATS.length,
)

/** All but raw, which is what remains. */
export const RECOGNISED: readonly Format[] = FORMATS.slice(0, -1)

/** For messages. */
export const FORMATS_READ = `${FORMAT_NAMES.slice(0, -1).join(', ')} and ${FORMAT_NAMES.at(-1)}`

const BY_NAME = new Map(FORMATS.map(format => [format.name, format]))

/** Returns the format of that name; undefined where there is none. */
export const findFormat = (name: string): Format | undefined => BY_NAME.get(name)

/** Returns the format of a layer. Throws TypeError for a name that is not known: no input leads there. */
export function formatOf({ format }: Pick<LayerSpec, 'format'>): Format {
  const found = BY_NAME.get(format)
  if (!found) throw new TypeError(`there is no format "${format}"`)
  return found
}
