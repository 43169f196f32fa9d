/**
 * How mount(8) calls a program for a file system, for fstab and `mount -t fuse.vimgfs`: mount.fuse3 runs
 * `vimgfs IMAGE DIR -o OPTIONS`, and a link named mount.vimgfs is run with the options of mount(8).
 */
import fs from 'node:fs'
import path from 'node:path'
import { optionPieces } from '../fs/options.js'

const NAMES = ['mount.vimgfs', 'mount.fuse.vimgfs']

/**
 * The arguments of `vimgfs mount` where mount(8) has called us; 'nothing' for a mount that is only to be
 * pretended; undefined where it has not called us.
 */
export function mountArguments(program: string, args: readonly string[]) {
  const isHelper = NAMES.includes(path.basename(program))
  const [image = '', folder = '', ...rest] = args
  if (!isHelper && !looksLikeMount(image, folder, rest)) return undefined
  const lists: string[] = []
  for (let i = 0; i < rest.length; i++) {
    const word = rest[i] as string
    if (word === '-o') lists.push(rest[++i] ?? '')
    // The type is known, and the namespace has been entered.
    else if (word === '-t' || word === '-N') i++
    else if (/^-[a-z]*f/.test(word)) return 'nothing'
  }
  const options = lists.flatMap(optionPieces).filter(isAsked)
  return ['-q', ...(options.length > 0 ? ['-o', options.join(',')] : []), '--', image, folder]
}

/** A word that is no command is an image only where there is one, or where it can be nothing else. */
function looksLikeMount(image: string, folder: string, rest: readonly string[]): boolean {
  if (image.startsWith('-') || folder === '' || folder.startsWith('-')) return false
  if (rest.length !== 0 && rest[0] !== '-o') return false
  return image.includes('/') || fs.existsSync(image)
}

/**
 * mount(8) and mount.fuse3 add these to every mount. A write-protected image is mounted read-only all the same,
 * as mount(8) does it, and an ordinary user's mount has neither devices nor set-user-ID programs.
 */
function isAsked(option: string): boolean {
  if (option === 'rw') return false
  return process.geteuid?.() === 0 || (option !== 'suid' && option !== 'dev')
}
