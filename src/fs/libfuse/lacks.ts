/**
 * The features that the libfuse transport lacks, because libfuse 2.9.9 and fuse-native 2.2.6 lack them. The log lists it at
 * each mount, and docs/libfuse.md has the same table: a test compares them.
 */
export interface Lack {
  readonly what: string
  /** The error that a program gets which asks for it; undefined where nothing fails. */
  readonly errno?: 'EOPNOTSUPP' | 'EINVAL'
  /** The behaviour without the feature. */
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
    instead: 'vimgfs info shows the same',
  },
  seek: {
    what: 'lseek(2) for SEEK_DATA and SEEK_HOLE',
    instead: 'the kernel answers that all is data',
  },
  requestBytes: {
    what: 'requests of more than 128 KiB',
    instead: 'the kernel cuts larger ones',
  },
  tmpfile: {
    what: 'O_TMPFILE',
    errno: 'EOPNOTSUPP',
    instead: 'the direct transport also refuses it, with EROFS',
  },
  renameFlags: {
    what: 'renameat2(2) with flags, such as mv -n',
    errno: 'EINVAL',
    instead: 'the direct transport also refuses it, with EROFS',
  },
  readdirplus: {
    what: 'READDIRPLUS',
    instead: 'the kernel asks for each file of a listing separately',
  },
  passthrough: {
    what: 'passthrough of raw images',
    instead: 'they are served as all others',
  },
  nanoseconds: {
    what: 'times finer than a millisecond, before 1970, and of birth',
    instead: 'milliseconds since 1970',
  },
  threads: {
    what: 'threads',
    instead: 'one thread answers all requests and decompresses; --threads does nothing',
  },
  sizes: {
    what: 'files in .vimgfs that have no size and keep their text while they are open',
    instead: 'their texts are padded with spaces, and change while they are open',
  },
  fusermountDevice: {
    what: 'mounting on subvolumes, and by users who may not open /dev/fuse or whose folder is not empty',
    instead: 'one line that says so, and exit code 1',
  },
} as const satisfies Record<string, Lack>

/** Returns one line for each, for the log. */
export const lackLines = (): string[] =>
  Object.values<Lack>(LACKS).map(({ what, errno, instead }) =>
    errno === undefined ? `${what}: ${instead}` : `${what} (${errno}): ${instead}`,
  )
