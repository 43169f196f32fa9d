import { formatOf } from '../../formats/registry.js'
import { requireOwnFile } from '../opening/archive.js'
import type { Source } from '../reading/source.js'
import type { NewTarget } from './convert.js'

/** Returns the base of a new image, of which `source` is the disk and `name` the name as the new image will have it. */
export function baseNamed(name: string, source: Source): NonNullable<NewTarget['base']> {
  const { format, sizeBytes, layers } = source
  const [top] = layers
  if (top) requireOwnFile(top)
  const contentId = top && formatOf(top).contentId?.(top)
  return { source, target: { name, format, sizeBytes, contentId } }
}
