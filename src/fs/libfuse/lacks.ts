/**
 * What the libfuse transport lacks: libfuse 2.9.9 and fuse-native 2.2.6 do not have it. The log says it at
 * mount, README.md has the table, and a test holds both to it.
 */
export interface Lack {
  readonly what: string
  /** The error that who asks for it gets; undefined where nothing fails. */
  readonly errno?: 'EOPNOTSUPP'
  /** What there is instead. */
  readonly instead: string
}

export const LACKS = {
  fallocate: {
    what: 'fallocate(2): holes, zeroed ranges, reserved room',
    errno: 'EOPNOTSUPP',
    instead: 'zeros can be written; a loop device has no discard',
  },
  xattr: {
    what: 'extended attributes',
    errno: 'EOPNOTSUPP',
    instead: 'vimgfs info says the same',
  },
  seek: {
    what: 'lseek(2) for SEEK_DATA and SEEK_HOLE',
    instead: 'the kernel answers that all is data',
  },
  requestBytes: {
    what: 'requests of more than 128 KiB',
    instead: 'the kernel cuts larger ones',
  },
  readdirplus: {
    what: 'READDIRPLUS',
    instead: 'each file of a listing is asked for by itself',
  },
  nanoseconds: {
    what: 'times finer than a millisecond, and birth times',
    instead: 'milliseconds',
  },
  threads: {
    what: 'threads',
    instead: 'one answers all requests, and decompresses alone; --threads does nothing',
  },
  sizes: {
    what: 'files in .vimgfs without a size',
    instead: 'they end in spaces',
  },
  fusermountDevice: {
    what: 'mounting for users whom /dev/fuse is closed to, or on folders of theirs that are not empty',
    instead: 'one line that says so, and exit code 1',
  },
} as const satisfies Record<string, Lack>

/** A line for the log. */
export const lackLines = (): string[] =>
  Object.values<Lack>(LACKS).map(({ what, errno, instead }) =>
    errno === undefined ? `${what}: ${instead}` : `${what} (${errno}): ${instead}`,
  )
