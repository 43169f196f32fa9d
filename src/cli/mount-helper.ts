/**
 * Calls by mount(8), for fstab, systemd, autofs and `mount -t vimgfs` (mount(8), "External helpers"): it runs a link named
 * mount.vimgfs with its own options, and mount.fuse3 runs `vimgfs IMAGE DIR -o OPTIONS`.
 */
import fs from 'node:fs'
import path from 'node:path'
import { UsageError } from '../errors.js'
import { optionPieces, parseMountOptions, UnknownMountOption } from '../fs/mounting/options.js'
import { OPTIONS } from './help/mount.js'
import { reported } from './reporting.js'
import { isSpelled } from './spelled-options.js'

const NAMES = ['mount.vimgfs', 'mount.fuse.vimgfs']
/** Exit codes of mount(8). */
const WRONG_USAGE = 1
const INTERRUPTED = 8
const FAILED = 32

export interface HelperCall {
  readonly image: string
  readonly folder: string
  /** As the lists of -o have them, without those that nobody has asked for. */
  readonly options: readonly string[]
  /** Only to go through the motions (-f). */
  readonly isFake: boolean
  /** Options that vimgfs does not know are left out (-s). */
  readonly isSloppy: boolean
  readonly isVerbose: boolean
  /** Libmount's table is left alone (-n). */
  readonly isUnnoted: boolean
}

/** Returns what mount(8) asks for; undefined if it has not called this program. Throws UsageError. */
export function helperCall(program: string, args: readonly string[]): HelperCall | undefined {
  const isHelper = isHelperName(program)
  const [first = '', second = '', ...others] = args
  if (!isHelper && !looksLikeMount(first, second, others)) return undefined
  const lists: string[] = []
  const words: string[] = []
  let letters = ''
  for (let i = 0; i < args.length; i++) {
    const word = args[i] as string
    const [, flags = '', option, joined = ''] = /^-([fnsvrw]*)(?:([oNt])(.*))?$/s.exec(word) ?? []
    if (word === '--') words.push(...args.slice(++i))
    else if (!word.startsWith('-') || word === '-') words.push(word)
    else if (flags === '' && option === undefined) throw wrong(`it knows no option ${word}`)
    if (word === '--') break
    letters += flags
    if (option === undefined) continue
    const value = joined === '' ? args[++i] : joined
    if (value === undefined) throw wrong(`-${option} needs a value`)
    // The type is known, and mount(8) has entered the namespace that -N names.
    if (option === 'o') lists.push(value)
  }
  const [image, folder, ...more] = words
  if (image === undefined || folder === undefined || more.length > 0) {
    throw wrong('it takes an image and a folder')
  }
  const given = lists.flatMap(optionPieces)
  const asked = given.includes('remount') ? given : given.filter(isAsked)
  const access = [...letters].findLast(letter => letter === 'r' || letter === 'w')
  return {
    image,
    folder,
    options: access === undefined ? asked : [...asked, access === 'r' ? 'ro' : 'rw'],
    isFake: letters.includes('f'),
    isSloppy: letters.includes('s'),
    isVerbose: letters.includes('v'),
    isUnnoted: letters.includes('n'),
  }
}

export const isHelperName = (program: string): boolean => NAMES.includes(path.basename(program))

const wrong = (problem: string): UsageError =>
  new UsageError(
    `mount.vimgfs IMAGE DIR [-sfnvrw] [-N NAMESPACE] [-o OPTIONS] [-t TYPE]: ${problem}`,
  )

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

/** Does what mount(8) asks for, and says on standard error what is wrong. Returns an exit code of mount(8). */
export async function runHelper(call: HelperCall): Promise<number> {
  const { image, folder, options, isFake, isSloppy, isVerbose, isUnnoted } = call
  if (isFake) return 0
  if (options.includes('remount')) {
    const { remount } = await import('./remount.js')
    return helperCode(await reported(() => remount(folder, options)))
  }
  if (options.includes('nofail') && isMissing(image)) return 0
  const { run } = await import('./mount.js')
  const isKnown = (option: string) => isSpelled(option, OPTIONS) || isMountOption(option)
  const given = isSloppy ? options.filter(isKnown) : options
  const words = [
    ...(isVerbose ? [] : ['-q']),
    ...(given.length > 0 ? ['-o', given.join(',')] : []),
    ...['--', image, folder],
  ]
  return helperCode(await reported(() => run(words, { exitCode: helperCode, isUnnoted })))
}

/** Returns mount(8)'s code for an exit code of vimgfs. */
function helperCode(code: number): number {
  if (code === 2) return WRONG_USAGE
  if (code === 130) return INTERRUPTED
  return code === 0 ? 0 : FAILED
}

function isMountOption(option: string): boolean {
  try {
    parseMountOptions([option])
    return true
  } catch (error) {
    return !(error instanceof UnknownMountOption)
  }
}

/**
 * Reports whether nothing has the name `image`, such as a file on a disk that is not there. The name may be that of a disk in an
 * archive, `x.ova::NAME`; what stands elsewhere, `https://…`, may be there.
 */
function isMissing(image: string): boolean {
  if (/^[a-z+]+:\/\//.test(image)) return false
  try {
    fs.statSync(image.split('::', 1)[0] as string)
    return false
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    return code === 'ENOENT' || code === 'ENOTDIR' || code === 'ENXIO' || code === 'ENOMEDIUM'
  }
}
