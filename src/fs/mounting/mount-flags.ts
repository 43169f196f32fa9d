/** Translates the options that all file systems have (mount(8)) to flags of mount(2). */
import { MountError, UsageError } from '../../errors.js'

const RDONLY = 1
const NOSUID = 2
const NODEV = 4
const NOEXEC = 8
const SYNCHRONOUS = 16
const DIRSYNC = 128
const NOSYMFOLLOW = 256
const NOATIME = 1024
const NODIRATIME = 2048
const SILENT = 32768
const RELATIME = 2 ** 21
const STRICTATIME = 2 ** 24
const LAZYTIME = 2 ** 25

/** Images are not trusted, so these hold unless root asks otherwise. */
export const DEFAULT_FLAGS = NOSUID | NODEV

/** The flags that each option sets and clears. */
const CHANGES: Record<string, readonly [set: number, clear: number]> = {
  nosuid: [NOSUID, 0],
  suid: [0, NOSUID],
  nodev: [NODEV, 0],
  dev: [0, NODEV],
  noexec: [NOEXEC, 0],
  exec: [0, NOEXEC],
  sync: [SYNCHRONOUS, 0],
  async: [0, SYNCHRONOUS],
  dirsync: [DIRSYNC, 0],
  noatime: [NOATIME, 0],
  atime: [0, NOATIME],
  nodiratime: [NODIRATIME, 0],
  diratime: [0, NODIRATIME],
  relatime: [RELATIME, 0],
  norelatime: [0, RELATIME],
  strictatime: [STRICTATIME, 0],
  nostrictatime: [0, STRICTATIME],
  lazytime: [LAZYTIME, 0],
  nolazytime: [0, LAZYTIME],
  nosymfollow: [NOSYMFOLLOW, 0],
  symfollow: [0, NOSYMFOLLOW],
  silent: [SILENT, 0],
  loud: [0, SILENT],
  // mount(8) decides who may mount, since it knows fstab. The flags that these options imply are set here.
  user: [NOEXEC | NOSUID | NODEV, 0],
  users: [NOEXEC | NOSUID | NODEV, 0],
  owner: [NOSUID | NODEV, 0],
  group: [NOSUID | NODEV, 0],
}

export const FLAG_OPTIONS: readonly string[] = Object.keys(CHANGES)

/** Returns `flags` after `option`; undefined if the option is not one of these. */
export function changeFlags(flags: number, option: string): number | undefined {
  const change = Object.hasOwn(CHANGES, option) ? CHANGES[option] : undefined
  return change && (flags & ~change[1]) | change[0]
}

/** Throws UsageError if `flags` need root and the user is not root. */
export function checkFlags(flags: number): void {
  if (process.geteuid?.() === 0) return
  for (const [flag, option] of [
    [NOSUID, 'suid'],
    [NODEV, 'dev'],
  ] as const) {
    if ((flags & flag) === 0) throw new UsageError(`-o ${option} is for root only; leave it out`)
  }
}

/** The flags with their names for fusermount3 and libfuse 2; undefined where these know none. */
const NAMES: readonly (readonly [number, string, string | undefined])[] = [
  [RDONLY, 'ro', 'rw'],
  [NOSUID, 'nosuid', 'suid'],
  [NODEV, 'nodev', 'dev'],
  [NOEXEC, 'noexec', undefined],
  [SYNCHRONOUS, 'sync', undefined],
  [DIRSYNC, 'dirsync', undefined],
  [NOATIME, 'noatime', undefined],
]

/** Returns the flags as options of fusermount3 and libfuse 2. Throws MountError for flags that these do not know. */
export function flagNames(flags: number): string[] {
  // RELATIME is the kernel's default, and SILENT says nothing about the mount.
  const known = NAMES.reduce((all, [flag]) => all | flag, RELATIME | SILENT)
  for (const [option, [set]] of Object.entries(CHANGES)) {
    if ((set & flags & ~known) !== 0) {
      throw new MountError(`-o ${option} needs root and the direct transport; leave it out`)
    }
  }
  return NAMES.flatMap(([flag, on, off]) => (flags & flag ? on : (off ?? [])))
}
