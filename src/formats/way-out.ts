/** Hints for the user about an image whose files are missing or not what it says. */
import { ImageError } from '../errors.js'
import type { FileSpec } from '../io/file-spec.js'
import type { Reference } from './format.js'

/** The hint for a file whose first bytes do not fit the format with which it was opened. */
export const WRONG_FORMAT =
  'leave out --format to have its format found; where the image above it states the format, correct that with vimgfs rebase -u -F'

/** The hint for the files of vmdk images, which are also searched beside the image. */
export const besideImage = (): string => 'put it beside the image'

/** The hint for a file that must be at `file`, because no tool changes its name in the image. */
export const backInPlace = (file: string): string =>
  `put it back as ${file}, or make a link to it there and allow its folder with --allow-path`

/** Returns the error for an image that is its own backing file or parent. */
export function loopAt(above: FileSpec, { role, name, loopHint }: Reference): ImageError {
  const problem = `its ${role} "${name}" stands above it: the chain is a loop`
  return new ImageError('CORRUPT', problem, { path: above.path, hint: loopHint })
}

/** Returns the warning that a problem of the image at `path` makes it read-only. */
export const readOnlyWarning = (path: string, problem: string): string =>
  `${path}: ${problem}, mounted read-only`
