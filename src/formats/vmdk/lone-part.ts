/** Recognises parts of a vmdk disk that the user names without their descriptor. */
import fs from 'node:fs'
import path from 'node:path'
import { ImageError } from '../../errors.js'

/** VMware's suffixes of extents and of the list of changes, after the descriptor's name. */
const PART = /^(.+)-(flat|[fs]\d{3}|rdmp?|delta|sesparse|ctk)\.vmdk$/i

/** Returns the error for a file that has the name of a part and no descriptor in it; undefined for other names. */
export function lonePart(file: string): ImageError | undefined {
  const [, name, kind] = PART.exec(path.basename(file)) ?? []
  if (name === undefined) return undefined
  const descriptor = path.join(path.dirname(file), `${name}.vmdk`)
  const isThere = fs.existsSync(descriptor)
  const hint = isThere
    ? `name its descriptor, ${descriptor}`
    : `put its descriptor, ${name}.vmdk, beside it, and name that`
  // A single flat extent is the whole disk.
  const raw = kind?.toLowerCase() === 'flat' ? ', or show it as it is with --format raw' : ''
  return new ImageError('NOT_AN_IMAGE', 'this is a part of a vmdk disk, without its descriptor', {
    path: file,
    hint: `${hint}${raw}`,
  })
}
