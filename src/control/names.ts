/**
 * The names of sockets: the image's device and inode, the server's process, and random digits, which make a name unique also
 * among servers in several PID namespaces. A name with a dot in front is that of a server that has not mounted yet.
 */
import type { BigIntStats } from 'node:fs'

const SUFFIX = '.sock'
const S_IFMT = 0o170000n
const S_IFBLK = 0o060000n

/** Returns what the names of all sockets of an image begin with. */
export function imageKey({ dev, ino, rdev, mode }: BigIntStats): string {
  const isBlockDevice = (mode & S_IFMT) === S_IFBLK
  // A block device may have several nodes.
  return isBlockDevice ? `b${rdev.toString(16)}` : `${dev.toString(16)}-${ino}`
}

/** The digits are no secret: only the folder's owner sees them. */
export const newName = (key: string): string => `${key}.${process.pid}.${digits()}${SUFFIX}`

const digits = () =>
  Math.floor(Math.random() * 2 ** 32)
    .toString(16)
    .padStart(8, '0')

export const hiddenName = (name: string): string => `.${name}`

export interface ParsedName {
  readonly key: string
  readonly pid: number
  readonly isHidden: boolean
}

/** Returns the parts of a socket's name; undefined for any other name. */
export function parseName(name: string): ParsedName | undefined {
  const [, dot, key = '', pid] =
    /^(\.?)(b[0-9a-f]+|[0-9a-f]+-[0-9]+)\.([0-9]+)\.[0-9a-f]{8}\.sock$/.exec(name) ?? []
  return pid === undefined ? undefined : { key, pid: Number(pid), isHidden: dot === '.' }
}
