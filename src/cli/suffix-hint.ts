import path from 'node:path'
import { printable } from '../errors.js'
import { RAW, RECOGNISED } from '../formats/registry.js'
import { complain } from './output.js'

/**
 * Says that a new image is raw although its name promises another format: qemu-img's default, too, is raw.
 * @param option the option that gives the format
 */
export function hintAtSuffix(file: string, option: '-f' | '-O'): void {
  const suffix = path.extname(file).toLowerCase()
  const promised = RECOGNISED.find(({ suffixes }) => suffixes.includes(suffix))
  if (!promised) return
  const { name } = promised
  complain(
    `vimgfs: ${printable(file)}: it is ${RAW.name}, although its name ends in ${suffix}; ${option} ${name} makes a ${name} image\n`,
  )
}
