/**
 * The kernel's FUSE protocol: the structures of linux/fuse.h, in the byte order of the machines that
 * vimgfs runs on (little-endian). Names follow that header.
 */
import { bytes, i32le, i64le, layout, u16le, u32le, u64le } from '../binary.js'

export const KERNEL_VERSION = 7
/** The newest minor version whose additions are known here: 7.39 brought STATX. */
export const MINOR_VERSION = 39
/** Linux 4.18. */
export const OLDEST_MINOR_VERSION = 27

export const ROOT_ID = 1
/** Those that are named here; opcodes.ts has all. */
export const OPCODE = { READ: 15, WRITE: 16, RELEASE: 18, FSYNC: 20, FALLOCATE: 43 } as const
/** A write request, or a reply, at most: 256 pages. */
export const MAX_REQUEST_BYTES = 2 ** 20
/**
 * A read request at most, where the kernel is told: who reads more at once is answered by several workers,
 * from their processors' own caches.
 */
export const MAX_READ_BYTES = 2 ** 18
/** A request with its header; the kernel wants room for max_write and a page. */
export const MESSAGE_BYTES = MAX_REQUEST_BYTES + 4096

export const IN_HEADER = layout({
  length: u32le,
  opcode: u32le,
  /** Only echoed. */
  unique: bytes(8),
  nodeid: u64le,
  uid: u32le,
  gid: u32le,
  pid: u32le,
  extensionLength: u16le,
  padding: u16le,
})
export const OUT_HEADER = layout({ length: u32le, error: i32le, unique: bytes(8) })
/** A message without a request has no `unique`, and this where replies have an error. */
export const NOTIFY_INVAL_INODE = 2
export const INVAL_INODE_OUT = layout({ ino: u64le, offset: i64le, length: i64le })
/** The longest reply. */
export const REPLY_BYTES = OUT_HEADER.size + MAX_REQUEST_BYTES

export const INIT_IN = layout({ major: u32le, minor: u32le, maxReadahead: u32le, flags: u32le })
/** Follows INIT_IN where the kernel has INIT_EXT among its flags. */
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
  /** OPEN is told of O_TRUNC; without it truncating by opening looks like truncate(2). */
  ATOMIC_O_TRUNC: 1 << 3,
  /** LOOKUP knows "." and "..", by which NFS servers find what the kernel has let go. */
  EXPORT_SUPPORT: 1 << 4,
  BIG_WRITES: 1 << 5,
  DO_READDIRPLUS: 1 << 13,
  READDIRPLUS_AUTO: 1 << 14,
  ASYNC_DIO: 1 << 15,
  PARALLEL_DIROPS: 1 << 18,
  MAX_PAGES: 1 << 22,
  /**
   * Writing takes set-user-ID bits and capabilities away from a file. Ours never have any; without this
   * the kernel asks for the attribute `security.capability` before each write.
   */
  HANDLE_KILLPRIV_V2: 1 << 28,
  INIT_EXT: 1 << 30,
}
/** In `flags2`: FUSE_DIRECT_IO_ALLOW_MMAP, bit 36 of all. Files may be mapped that FOPEN.DIRECT_IO is for. */
export const INIT_FLAG2 = { DIRECT_IO_ALLOW_MMAP: 1 << 4 }

/** Times are unsigned by name; the kernel takes them for signed ones, before 1970. */
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
/** ATTR follows each of these two. */
export const ENTRY_OUT = layout({
  nodeid: u64le,
  generation: u64le,
  entryValid: u64le,
  attrValid: u64le,
  entryValidNsec: u32le,
  attrValidNsec: u32le,
})
export const ATTR_OUT = layout({ attrValid: u64le, attrValidNsec: u32le, padding: u32le })

/** STATX_IN begins with the same. */
export const GETATTR_IN = layout({ getattrFlags: u32le, dummy: u32le, fh: u64le })
/** In `getattrFlags`: `fh` counts. */
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
export const OPEN_OUT = layout({ fh: u64le, openFlags: u32le, padding: u32le })
export const FOPEN = {
  DIRECT_IO: 1 << 0,
  KEEP_CACHE: 1 << 1,
  CACHE_DIR: 1 << 3,
  PARALLEL_DIRECT_WRITES: 1 << 6,
}
/**
 * From this minor version on (Linux 6.6) a write past the page cache drops the pages that it makes old,
 * so that handles with FOPEN.DIRECT_IO and others see the same.
 */
export const COHERENT_DIRECT_IO_MINOR = 39

/** The same for READ, READDIR and READDIRPLUS. */
export const READ_IN = layout({
  fh: u64le,
  offset: u64le,
  size: u32le,
  readFlags: u32le,
  lockOwner: bytes(8),
  flags: u32le,
  padding: u32le,
})
/** The bytes follow. */
export const WRITE_IN = layout({
  fh: u64le,
  offset: u64le,
  size: u32le,
  writeFlags: u32le,
  lockOwner: bytes(8),
  flags: u32le,
  padding: u32le,
})
/** In `writeFlags`: a page is written back, by a handle that need not be its writer's. */
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
/** What a SETATTR sets; the times are the other bits. */
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
/** The same for GETXATTR (a name follows) and LISTXATTR. */
export const GETXATTR_IN = layout({ size: u32le, padding: u32le })
export const GETXATTR_OUT = layout({ size: u32le, padding: u32le })
export const FLUSH_IN = layout({ fh: u64le, unused: u32le, padding: u32le, lockOwner: bytes(8) })
export const RELEASE_IN = layout({
  fh: u64le,
  flags: u32le,
  releaseFlags: u32le,
  lockOwner: bytes(8),
})
