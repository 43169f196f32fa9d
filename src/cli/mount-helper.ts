/**
 * Calls by mount(8), for fstab and `mount -t fuse.vimgfs`: mount.fuse3 runs `vimgfs IMAGE DIR -o OPTIONS`, and mount(8)
 * runs a link named mount.vimgfs with its own options.
 */
import fs from 'node:fs'
import path from 'node:path'
import { optionPieces } from '../fs/mounting/options.js'

const NAMES = ['mount.vimgfs', 'mount.fuse.vimgfs']

/**
 * Returns the arguments of `vimgfs mount` if mount(8) has called this program; 'nothing' if the mount is to be faked
 * (mount -f); undefined if mount(8) has not called it.
 */
export function mountArguments(program: string, args: readonly string[]) {
  const isHelper = NAMES.includes(path.basename(program))
  const [image = '', folder = '', ...rest] = args
  if (!isHelper && !looksLikeMount(image, folder, rest)) return undefined
  const lists: string[] = []
  for (let i = 0; i < rest.length; i++) {
    const word = rest[i] as string
    if (word === '-o') lists.push(rest[++i] ?? '')
    // The type is known, and mount(8) has entered the namespace.
    else if (word === '-t' || word === '-N') i++
    else if (/^-[a-z]*f/.test(word)) return 'nothing'
  }
  const options = lists.flatMap(optionPieces).filter(isAsked)
  return ['-q', ...(options.length > 0 ? ['-o', options.join(',')] : []), '--', image, folder]
}

/** A word that is not a command counts as an image only if that file exists, or if it is a path. */
function looksLikeMount(image: string, folder: string, rest: readonly string[]): boolean {
  if (image.startsWith('-') || folder === '' || folder.startsWith('-')) return false
  if (rest.length !== 0 && rest[0] !== '-o') return false
  return image.includes('/') || fs.existsSync(image)
}

/**
 * Leaves out what mount(8) and mount.fuse3 add to every mount: `rw`, so that a write-protected image is mounted read-only,
 * as mount(8) does it; and for ordinary users `suid` and `dev`, which their mounts cannot have.
 */
function isAsked(option: string): boolean {
  if (option === 'rw') return false
  return process.geteuid?.() === 0 || (option !== 'suid' && option !== 'dev')
}
