/** Finds the format of a backing file that the image above it states. */
import { ImageError } from '../../errors.js'
import type { LayerSpec, Reference } from '../../formats/format.js'
import { FORMATS_READ, findFormat } from '../../formats/registry.js'

/**
 * Returns the name of the format; undefined, with a warning, if it is not stated. Throws ImageError for a format that is not
 * supported.
 */
export function statedFormat(
  { path }: LayerSpec,
  { name, format }: Reference,
  warn: (text: string) => void,
): string | undefined {
  if (format === undefined) {
    warn(
      `${path}: the format of its backing file "${name}" is not stated and was found by its first bytes`,
    )
    return undefined
  }
  // QEMU also uses the name of the protocol for a raw file.
  if (format === 'file' || format === 'host_device') return 'raw'
  if (findFormat(format)) return format
  throw new ImageError('UNSUPPORTED', `its backing file "${name}" has the format "${format}"`, {
    path,
    hint: `${FORMATS_READ} are read; convert it with qemu-img convert`,
  })
}
