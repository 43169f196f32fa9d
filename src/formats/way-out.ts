/** What a user can do about an image whose files are not where, or what, it says they are. */
import { ImageError } from '../errors.js'
import type { FileSpec } from '../io/file-spec.js'
import type { Reference } from './format.js'

/** For a file whose first bytes are not those of the format that it was opened as. */
export const WRONG_FORMAT =
  'leave out --format to have its format found; where the image above it states the format, correct that with qemu-img rebase -u -F'

/** For the files of vmdk images, which are looked for there too. */
export const besideImage = (): string => 'put it beside the image'

/** For a file that can be nowhere but at `file`, because no tool changes its name in the image. */
export const backInPlace = (file: string): string =>
  `put it back as ${file}, or make a link to it there and allow its folder with --allow-path`

/** Returns the error for an image that is its own backing file or parent. */
export function loopAt(above: FileSpec, { role, name, loopHint }: Reference): ImageError {
  const problem = `its ${role} "${name}" stands above it: the chain is a loop`
  return new ImageError('CORRUPT', problem, { path: above.path, hint: loopHint })
}

/**
 * Returns `warnings` with one that says why the image is read-only. A reader's own warning of the same
 * problem is joined to it, so that the user sees one line of each problem.
 */
export function withReadOnlyWarning(
  at: string,
  problem: string,
  warnings: readonly string[],
): string[] {
  const told = `${at}: ${problem}`
  const same = warnings.find(warning => warning.startsWith(`${told};`))
  const joined = `${told}, mounted read-only${same?.slice(told.length) ?? ''}`
  return [joined, ...warnings.filter(warning => warning !== same)]
}
