/** What a user can do about an image whose files are not where, or what, it says they are. */
import { ImageError } from '../errors.js'
import type { LayerSpec } from './layer.js'

/** For a file whose first bytes are not those of the format that it was opened as. */
export const WRONG_FORMAT =
  'leave out --format to have its format found; where the image above it states the format, correct that with qemu-img rebase -u -F'

/** For the files of vmdk images, which are looked for there too. */
export const besideImage = (): string => 'put it beside the image'

/** For a file that can be nowhere but at `file`, because no tool changes its name in the image. */
export const backInPlace = (file: string): string =>
  `put it back as ${file}, or make a link to it there and allow its folder with --allow-path`

/** Returns the hint for a backing file that is not there; qemu-img rebase changes the name in qcow2 only. */
export const backingHint = ({ qcow2 }: LayerSpec): ((file: string) => string) =>
  qcow2 ? () => 'restore it, or name it with qemu-img rebase -u' : backInPlace

/** Returns the error for an image that is its own backing file or parent. */
export function loopAt(above: LayerSpec, what: string): ImageError {
  let hint = 'restore it from a copy'
  if (above.vmdk) hint = 'correct the line parentFileNameHint of its descriptor'
  if (above.qcow2) hint = 'name the right file with qemu-img rebase -u'
  const problem = `its ${what} stands above it: the chain is a loop`
  return new ImageError('CORRUPT', problem, { path: above.path, hint })
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
