/** The options that mean the same for every file system (mount(8)), as flags of mount(2). */
import { MountError, UsageError } from '../errors.js'

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

/** An image is not trusted, so these hold unless root asks for something else. */
export const DEFAULT_FLAGS = NOSUID | NODEV

/** What each option sets and clears. */
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
  // Who may mount is for mount(8) to decide, which knows fstab; what that implies is for us.
  user: [NOEXEC | NOSUID | NODEV, 0],
  users: [NOEXEC | NOSUID | NODEV, 0],
  owner: [NOSUID | NODEV, 0],
  group: [NOSUID | NODEV, 0],
}

/** `flags` after `option`; undefined where it is not one of these. */
export function changeFlags(flags: number, option: string): number | undefined {
  const change = Object.hasOwn(CHANGES, option) ? CHANGES[option] : undefined
  return change && (flags & ~change[1]) | change[0]
}

/** Throws UsageError for what only root may ask for. */
export function checkFlags(flags: number): void {
  if (process.geteuid?.() === 0) return
  for (const [flag, option] of [
    [NOSUID, 'suid'],
    [NODEV, 'dev'],
  ] as const) {
    if ((flags & flag) === 0) throw new UsageError(`-o ${option} is for root only; leave it out`)
  }
}

/** With all but this, fusermount3 and libfuse 2 can do. */
const NAMES: readonly (readonly [number, string, string | undefined])[] = [
  [RDONLY, 'ro', 'rw'],
  [NOSUID, 'nosuid', 'suid'],
  [NODEV, 'nodev', 'dev'],
  [NOEXEC, 'noexec', undefined],
  [SYNCHRONOUS, 'sync', undefined],
  [DIRSYNC, 'dirsync', undefined],
  [NOATIME, 'noatime', undefined],
]

/** The flags as options of fusermount3 and libfuse 2. Throws MountError for those that they do not know. */
export function flagNames(flags: number): string[] {
  // What the kernel does anyway, and what says nothing about the mount.
  const known = NAMES.reduce((all, [flag]) => all | flag, RELATIME | SILENT)
  for (const [option, [set]] of Object.entries(CHANGES)) {
    if ((set & flags & ~known) !== 0) {
      throw new MountError(`-o ${option} needs root and the direct transport; leave it out`)
    }
  }
  return NAMES.flatMap(([flag, on, off]) => (flags & flag ? on : (off ?? [])))
}
