/**
 * The kernel's FUSE protocol: the structures of linux/fuse.h, little-endian as the machines that vimgfs runs on. Names
 * follow that header.
 */
import { bytes, i32le, i64le, layout, u16le, u32le, u64le } from '../../binary.js'

export const KERNEL_VERSION = 7
/** The newest minor version that is known here: 7.40 brought passthrough. */
export const MINOR_VERSION = 40
/** The version of Linux 4.18. */
export const OLDEST_MINOR_VERSION = 27

export const ROOT_ID = 1
/** The opcodes that other modules name; opcodes.ts has all. */
export const OPCODE = {
  SETATTR: 4,
  OPEN: 14,
  READ: 15,
  WRITE: 16,
  RELEASE: 18,
  FSYNC: 20,
  FLUSH: 25,
  MKNOD: 8,
  UNLINK: 10,
  RENAME: 12,
  CREATE: 35,
  FALLOCATE: 43,
  RENAME2: 45,
} as const
/** The most bytes in a write request or a reply: 256 pages. */
export const MAX_REQUEST_BYTES = 2 ** 20
/**
 * The most bytes in a read request (`max_read`). Several workers answer a program that reads more at once, each from its own
 * processor's cache.
 */
export const MAX_READ_BYTES = 2 ** 18
/** The size of a request's buffer: the kernel requires room for max_write and a page. */
export const MESSAGE_BYTES = MAX_REQUEST_BYTES + 4096

export const IN_HEADER = layout({
  length: u32le,
  opcode: u32le,
  /** Is only echoed. */
  unique: bytes(8),
  nodeid: u64le,
  uid: u32le,
  gid: u32le,
  pid: u32le,
  extensionLength: u16le,
  padding: u16le,
})
export const OUT_HEADER = layout({ length: u32le, error: i32le, unique: bytes(8) })
/** A notification has `unique` 0, and this code in place of a reply's error. */
export const NOTIFY_INVAL_INODE = 2
export const INVAL_INODE_OUT = layout({ ino: u64le, offset: i64le, length: i64le })
export const NOTIFY_INVAL_ENTRY = 3
/** Bytes follow, for the page cache of a file. The file then ends no earlier than they do. */
export const NOTIFY_STORE = 4
export const STORE_OUT = layout({ nodeid: u64le, offset: u64le, size: u32le, padding: u32le })
/** The name follows, with a NUL that `namelen` does not count. */
export const INVAL_ENTRY_OUT = layout({ parent: u64le, namelen: u32le, flags: u32le })
/** The size of the longest reply. */
export const REPLY_BYTES = OUT_HEADER.size + MAX_REQUEST_BYTES

export const INIT_IN = layout({ major: u32le, minor: u32le, maxReadahead: u32le, flags: u32le })
/** Follows INIT_IN if the kernel's flags include INIT_EXT. */
export const INIT_IN_EXT = layout({ flags2: u32le })
export const INIT_OUT = layout({
  major: u32le,
  minor: u32le,
  maxReadahead: u32le,
  flags: u32le,
  maxBackground: u16le,
  congestionThreshold: u16le,
  maxWrite: u32le,
  timeGranularity: u32le,
  maxPages: u16le,
  mapAlignment: u16le,
  flags2: u32le,
  maxStackDepth: u32le,
  unused: bytes(24),
})
export const INIT_FLAG = {
  ASYNC_READ: 1 << 0,
  /** OPEN gets O_TRUNC. Without this flag truncating by opening looks like truncate(2). */
  ATOMIC_O_TRUNC: 1 << 3,
  /** LOOKUP serves "." and "..": NFS servers use them for inodes that the kernel has forgotten. */
  EXPORT_SUPPORT: 1 << 4,
  BIG_WRITES: 1 << 5,
  DO_READDIRPLUS: 1 << 13,
  READDIRPLUS_AUTO: 1 << 14,
  ASYNC_DIO: 1 << 15,
  PARALLEL_DIROPS: 1 << 18,
  MAX_PAGES: 1 << 22,
  /**
   * Writing removes set-user-ID bits and capabilities of a file. Our files never have any. Without this flag the kernel asks
   * for the attribute `security.capability` before each write.
   */
  HANDLE_KILLPRIV_V2: 1 << 28,
  INIT_EXT: 1 << 30,
}
/** In `flags`: the kernel keeps what is written, and its size and times, and sends it later. It holds for all files. */
export const WRITEBACK_CACHE = 1 << 16
/** In `flags2`, the bits from 32 on. */
export const INIT_FLAG2 = {
  /** Files opened with FOPEN.DIRECT_IO may be mapped. */
  DIRECT_IO_ALLOW_MMAP: 1 << 4,
  /** Files may be opened with FOPEN.PASSTHROUGH. */
  PASSTHROUGH: 1 << 5,
}

/** The header calls times unsigned, but the kernel takes them as signed, so times before 1970 work. */
export const ATTR = layout({
  ino: u64le,
  size: u64le,
  blocks: u64le,
  atime: i64le,
  mtime: i64le,
  ctime: i64le,
  atimensec: u32le,
  mtimensec: u32le,
  ctimensec: u32le,
  mode: u32le,
  nlink: u32le,
  uid: u32le,
  gid: u32le,
  rdev: u32le,
  blksize: u32le,
  flags: u32le,
})
/** ATTR follows this one and ATTR_OUT. */
export const ENTRY_OUT = layout({
  nodeid: u64le,
  generation: u64le,
  entryValid: u64le,
  attrValid: u64le,
  entryValidNsec: u32le,
  attrValidNsec: u32le,
})
export const ATTR_OUT = layout({ attrValid: u64le, attrValidNsec: u32le, padding: u32le })

/** STATX_IN begins with the same fields. */
export const GETATTR_IN = layout({ getattrFlags: u32le, dummy: u32le, fh: u64le })
/** In `getattrFlags`: `fh` is valid. */
export const GETATTR_FH = 1
export const STATX_IN = layout({
  getattrFlags: u32le,
  reserved: u32le,
  fh: u64le,
  flags: u32le,
  mask: u32le,
})
const SX_TIME = { seconds: i64le, nanoseconds: u32le, reserved: u32le }
const times = <P extends string>(prefix: P) =>
  Object.fromEntries(Object.entries(SX_TIME).map(([name, field]) => [prefix + name, field])) as {
    [K in keyof typeof SX_TIME as `${P}${K}`]: (typeof SX_TIME)[K]
  }
export const STATX_OUT = layout({
  attrValid: u64le,
  attrValidNsec: u32le,
  flags: u32le,
  spare: bytes(16),
  mask: u32le,
  blksize: u32le,
  attributes: u64le,
  nlink: u32le,
  uid: u32le,
  gid: u32le,
  mode: u16le,
  spare0: u16le,
  ino: u64le,
  size: u64le,
  blocks: u64le,
  attributesMask: u64le,
  ...times('a'),
  ...times('b'),
  ...times('c'),
  ...times('m'),
  rdevMajor: u32le,
  rdevMinor: u32le,
  devMajor: u32le,
  devMinor: u32le,
  spare2: bytes(112),
})

export const OPEN_IN = layout({ flags: u32le, openFlags: u32le })
/** `backing` is the number of the file to pass through, see FOPEN.PASSTHROUGH. */
export const OPEN_OUT = layout({ fh: u64le, openFlags: u32le, backing: u32le })
export const FOPEN = {
  DIRECT_IO: 1 << 0,
  KEEP_CACHE: 1 << 1,
  CACHE_DIR: 1 << 3,
  PARALLEL_DIRECT_WRITES: 1 << 6,
  /** The kernel reads and writes another file itself; with DIRECT_IO only maps go there. KEEP_CACHE must not be set. */
  PASSTHROUGH: 1 << 7,
}
/**
 * From this minor version on (Linux 6.6) a write past the page cache drops the cached pages that it makes stale. So handles
 * with and without FOPEN.DIRECT_IO see the same bytes.
 */
export const COHERENT_DIRECT_IO_MINOR = 39

/** For READ, READDIR and READDIRPLUS. */
export const READ_IN = layout({
  fh: u64le,
  offset: u64le,
  size: u32le,
  readFlags: u32le,
  lockOwner: bytes(8),
  flags: u32le,
  padding: u32le,
})
/** In `readFlags`: the lock owner is valid. Programs have one, also past the page cache. Reads into the page cache have none. */
export const READ_LOCKOWNER = 2
/** The data follow. */
export const WRITE_IN = layout({
  fh: u64le,
  offset: u64le,
  size: u32le,
  writeFlags: u32le,
  lockOwner: bytes(8),
  flags: u32le,
  padding: u32le,
})
/** In `writeFlags`: a cached page is written back, through a handle that need not be the writer's. */
export const WRITE_CACHE = 1
export const WRITE_OUT = layout({ size: u32le, padding: u32le })
export const FALLOCATE_IN = layout({
  fh: u64le,
  offset: u64le,
  length: u64le,
  mode: u32le,
  padding: u32le,
})
export const SETATTR_IN = layout({
  valid: u32le,
  padding: u32le,
  fh: u64le,
  size: u64le,
  lockOwner: bytes(8),
  atime: u64le,
  mtime: u64le,
  ctime: u64le,
  atimensec: u32le,
  mtimensec: u32le,
  ctimensec: u32le,
  mode: u32le,
  unused4: u32le,
  uid: u32le,
  gid: u32le,
  unused5: u32le,
})
/** The attributes that a SETATTR sets; other bits are for times. */
export const FATTR = { MODE: 1 << 0, UID: 1 << 1, GID: 1 << 2, SIZE: 1 << 3, FH: 1 << 6 }
export const DIRENT = layout({ ino: u64le, off: u64le, namelen: u32le, type: u32le })
export const STATFS_OUT = layout({
  blocks: u64le,
  bfree: u64le,
  bavail: u64le,
  files: u64le,
  ffree: u64le,
  bsize: u32le,
  namelen: u32le,
  frsize: u32le,
  padding: u32le,
  spare: bytes(24),
})
export const ACCESS_IN = layout({ mask: u32le, padding: u32le })
export const LSEEK_IN = layout({ fh: u64le, offset: u64le, whence: u32le, padding: u32le })
export const LSEEK_OUT = layout({ offset: u64le })
/** For GETXATTR (a name follows) and LISTXATTR. */
export const GETXATTR_IN = layout({ size: u32le, padding: u32le })
export const GETXATTR_OUT = layout({ size: u32le, padding: u32le })
export const FLUSH_IN = layout({ fh: u64le, unused: u32le, padding: u32le, lockOwner: bytes(8) })
export const RELEASE_IN = layout({
  fh: u64le,
  flags: u32le,
  releaseFlags: u32le,
  lockOwner: bytes(8),
})
