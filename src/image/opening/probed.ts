/**
 * Warns if the format that an image's first bytes show may be wrong. The guest of a raw image writes these bytes, and a header
 * of another format makes vimgfs open the files that it names.
 */
import { printable } from '../../errors.js'
import type { LayerSpec } from '../../formats/format.js'
import { formatOf } from '../../formats/registry.js'
import { referenceOf } from '../layer.js'

/** Suffixes of raw images. */
const RAW_NAME = /(?:\.(?:raw|img|dd|bin|image|hdd|disk)|-flat\.vmdk)$/i

/** Returns a warning if an image's name says raw, but its bytes say a format and name other files. */
export function probedWarning(layer: LayerSpec): string | undefined {
  const { path, format, isProbed } = layer
  if (!isProbed || format === 'raw' || !RAW_NAME.test(path)) return undefined
  const named = referenceOf(layer) ?? formatOf(layer).namedFile?.(layer)
  if (!named) return undefined
  const what = printable(`the ${named.role} "${named.name}"`)
  return `${path}: its name says raw, but its first bytes say ${format} with ${what}; if its guest has written them, use --format raw`
}
