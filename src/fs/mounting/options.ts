/** Parses mount options (-o), as other FUSE programs take them. */
import { UsageError } from '../../errors.js'
import { changeFlags, DEFAULT_FLAGS, FLAG_OPTIONS } from './mount-flags.js'
import { nearest } from '../../nearest.js'
import type { ScratchOptions } from '../scratch/scratch-maker.js'
import { parseDiskSize } from '../../sizes.js'

export interface MountOptions {
  /** The access that the user asked for; undefined means to write if the image can be written. */
  readonly access: 'ro' | 'rw' | undefined
  /** Read also while others write the image. */
  readonly forceShare: boolean
  /** Whether writing past the disk's end makes it larger. */
  readonly growable: boolean
  /** Whether partitions are shown as files. */
  readonly partitions: boolean
  /** Whether, and how, programs write to scratch copies. */
  readonly scratch: ScratchOptions | undefined
  /** Whether programs change snapshots by changing the folder. */
  readonly manage: boolean
  /** Whether the kernel may read files itself: never, where nothing is lost by it, or also where others could change the image. */
  readonly passthrough: 'off' | 'auto' | 'on'
  /** How much of each file may be written out for that, in bytes. */
  readonly materializeBytes: number
  /** Whether the kernel keeps what is written in its page cache, and sends it later. */
  readonly writeback: boolean
  /** The time between flushes, in seconds; 0 for never. */
  readonly commitSeconds: number
  readonly allowOther: boolean
  readonly allowRoot: boolean
  readonly defaultPermissions: boolean
  readonly fsname: string | undefined
  readonly uid: number | undefined
  readonly gid: number | undefined
  /** Permission bits to remove from 0777. */
  readonly umask: number | undefined
  /** Flags of mount(2), without read-only. */
  readonly flags: number
}

/** No option of a mount has this name. */
export class UnknownMountOption extends UsageError {
  constructor(option: string, others: readonly string[]) {
    const [name = ''] = option.split('=')
    const names = [...FLAGS, ...VALUES, ...ACCEPTED, ...FLAG_OPTIONS, ...others, 'ro', 'rw']
    super(`unknown mount option "${option}"${nearest(name, names)}`)
  }
}

/** Accepted and ignored: they are for mount(8) and other readers of fstab, or hold anyway. */
const ACCEPTED = new Set([
  ...['defaults', 'auto', 'noauto', 'nofail', '_netdev', '_rnetdev', 'nonempty'],
  ...['nouser', 'nousers', 'noowner', 'nogroup', 'mand', 'nomand', 'iversion', 'noiversion'],
])
/** Accepted and ignored, with a value. */
const ACCEPTED_VALUES = new Set(['comment', 'helper', 'uhelper', 'user'])

export const FLAGS = new Set([
  ...['allow_other', 'allow_root', 'default_permissions', 'force-share', 'growable', 'partitions'],
  ...['manage', 'writeback'],
])
export const VALUES = new Set([
  ...['uid', 'gid', 'umask', 'fsname', 'commit', 'scratch', 'scratch-dir', 'scratch-size'],
  ...['passthrough', 'materialize'],
])
const DEFAULT_COMMIT_SECONDS = 5
const MAX_COMMIT_SECONDS = 86400

/**
 * Parses the arguments of all -o. Throws UsageError.
 * @param others names that the caller has looked for, to suggest one
 */
export function parseMountOptions(
  lists: readonly string[],
  others: readonly string[] = [],
): MountOptions {
  const flags = new Set<string>()
  const values = new Map<string, string>()
  let access: MountOptions['access']
  let mountFlags = DEFAULT_FLAGS
  for (const option of lists.flatMap(splitOptions)) {
    const [name = '', ...rest] = option.split('=')
    const value = rest.join('=')
    if (name === 'scratch') flags.add(name)
    if (option === 'scratch') continue
    if (VALUES.has(name)) {
      if (value === '') throw new UsageError(`-o ${name} needs a value: -o ${name}=…`)
      values.set(name, value)
    } else if (/^x-/i.test(name)) continue
    else if (rest.length > 0) {
      if (name === 'user') mountFlags = changeFlags(mountFlags, name) ?? mountFlags
      else if (name === 'subtype' && value !== 'vimgfs') {
        throw new UsageError(`-o ${option}: the subtype is always vimgfs; leave it out`)
      } else if (name !== 'subtype' && !ACCEPTED_VALUES.has(name)) {
        throw new UnknownMountOption(option, others)
      }
    } else if (FLAGS.has(name)) flags.add(name)
    // The last one counts.
    else if (name === 'ro' || name === 'rw') access = name
    else if (!ACCEPTED.has(option)) {
      const changed = changeFlags(mountFlags, option)
      if (changed === undefined) throw new UnknownMountOption(option, others)
      mountFlags = changed
    }
  }
  if (flags.has('allow_other') && flags.has('allow_root')) {
    throw new UsageError('allow_other and allow_root exclude each other')
  }
  if (flags.has('force-share') && access !== 'ro') {
    throw new UsageError('force-share is for reading only: -o ro,force-share')
  }
  if (flags.has('manage') && (access === 'ro' || flags.has('scratch'))) {
    throw new UsageError('manage changes the image: leave out ro and scratch, or manage')
  }
  if (flags.has('writeback')) requireWriteback(flags, values, access)
  const number = (name: string, radix: 8 | 10, max: number): number | undefined => {
    const text = values.get(name)
    if (text === undefined) return undefined
    const isNumber = (radix === 8 ? /^[0-7]+$/ : /^[0-9]+$/).test(text)
    const value = Number.parseInt(text, radix)
    if (!isNumber || value > max) {
      const kind =
        radix === 8
          ? 'an octal number up to 777'
          : name === 'commit'
            ? `seconds, up to ${max}`
            : 'a number'
      throw new UsageError(`-o ${name}=${text}: it takes ${kind}`)
    }
    return value
  }
  return {
    access,
    forceShare: flags.has('force-share'),
    growable: flags.has('growable'),
    partitions: flags.has('partitions'),
    manage: flags.has('manage'),
    scratch: scratchOptions(flags, values, access),
    passthrough: passthroughOf(values.get('passthrough') ?? 'auto'),
    materializeBytes: materializeOf(values.get('materialize')),
    writeback: flags.has('writeback'),
    commitSeconds: number('commit', 10, MAX_COMMIT_SECONDS) ?? DEFAULT_COMMIT_SECONDS,
    allowOther: flags.has('allow_other'),
    allowRoot: flags.has('allow_root'),
    defaultPermissions: flags.has('default_permissions'),
    fsname: values.get('fsname'),
    uid: number('uid', 10, 2 ** 32 - 2),
    gid: number('gid', 10, 2 ** 32 - 2),
    umask: number('umask', 8, 0o777),
    flags: mountFlags,
  }
}

/** Throws UsageError for what cannot be together with writeback. */
function requireWriteback(
  flags: ReadonlySet<string>,
  values: ReadonlyMap<string, string>,
  access: MountOptions['access'],
): void {
  if (access === 'ro') throw new UsageError('writeback is for writing: leave out ro or writeback')
  const others = ['scratch', 'partitions', 'manage', 'growable'].filter(name => flags.has(name))
  if (values.get('passthrough') === 'on') others.push('passthrough=on')
  if (others.length === 0) return
  throw new UsageError(`writeback cannot be together with ${others.join(' and ')}: leave one out`)
}

function passthroughOf(value: string): MountOptions['passthrough'] {
  if (value === 'off' || value === 'auto' || value === 'on') return value
  throw new UsageError(`-o passthrough=${value}: it takes off, auto or on`)
}

const materializeOf = (value: string | undefined): number =>
  value === undefined ? 0 : parseDiskSize(value, '-o materialize')

function scratchOptions(
  flags: ReadonlySet<string>,
  values: ReadonlyMap<string, string>,
  access: MountOptions['access'],
): ScratchOptions | undefined {
  const folder = values.get('scratch-dir')
  const size = values.get('scratch-size')
  if (!flags.has('scratch')) {
    if (folder === undefined && size === undefined) return undefined
    throw new UsageError(`-o scratch-${folder === undefined ? 'size' : 'dir'} needs -o scratch`)
  }
  if (access === 'ro') throw new UsageError('scratch copies are written: leave out ro or scratch')
  const limitBytes = size === undefined ? undefined : parseDiskSize(size, '-o scratch-size')
  return { file: values.get('scratch'), folder, limitBytes }
}

const splitOptions = (list: string): string[] => optionPieces(list).map(unescaped)

/** Returns a piece as it is meant: without the backslashes that protect its characters. */
export const unescaped = (piece: string): string => piece.replace(/\\(.)/g, '$1')

/** Splits a list at commas, except after a backslash and in quotes. Leaves the options as they are written. */
export const optionPieces = (list: string): string[] =>
  list.match(/(?:\\.|="[^"]*"|[^,\\])+/g) ?? []
