/**
 * The structures against linux/fuse.h. The numbers were printed by a C program with sizeof and
 * offsetof of the header of 7.38; those of STATX, which is newer, are from the header of 7.39.
 */
import t from 'tap'
import * as protocol from '../../../src/fs/protocol/protocol.js'

type Places = Record<string, number>
const cases: Record<string, { layout: { size: number; at: object }; size: number; at: Places }> = {
  fuse_in_header: {
    layout: protocol.IN_HEADER,
    size: 40,
    at: {
      length: 0,
      opcode: 4,
      unique: 8,
      nodeid: 16,
      uid: 24,
      gid: 28,
      pid: 32,
      extensionLength: 36,
    },
  },
  fuse_out_header: {
    layout: protocol.OUT_HEADER,
    size: 16,
    at: { length: 0, error: 4, unique: 8 },
  },
  'fuse_init_in before 7.36': {
    layout: protocol.INIT_IN,
    size: 16,
    at: { major: 0, minor: 4, maxReadahead: 8, flags: 12 },
  },
  fuse_init_out: {
    layout: protocol.INIT_OUT,
    size: 64,
    at: {
      ...{ major: 0, minor: 4, maxReadahead: 8, flags: 12, maxBackground: 16 },
      ...{ congestionThreshold: 18, maxWrite: 20, timeGranularity: 24, maxPages: 28 },
      ...{ mapAlignment: 30, flags2: 32, maxStackDepth: 36 },
    },
  },
  fuse_attr: {
    layout: protocol.ATTR,
    size: 88,
    at: {
      ...{ ino: 0, size: 8, blocks: 16, atime: 24, mtime: 32, ctime: 40 },
      ...{ atimensec: 48, mtimensec: 52, ctimensec: 56, mode: 60, nlink: 64 },
      ...{ uid: 68, gid: 72, rdev: 76, blksize: 80, flags: 84 },
    },
  },
  'fuse_entry_out before its fuse_attr': {
    layout: protocol.ENTRY_OUT,
    size: 40,
    at: {
      nodeid: 0,
      generation: 8,
      entryValid: 16,
      attrValid: 24,
      entryValidNsec: 32,
      attrValidNsec: 36,
    },
  },
  'fuse_attr_out before its fuse_attr': {
    layout: protocol.ATTR_OUT,
    size: 16,
    at: { attrValid: 0, attrValidNsec: 8 },
  },
  fuse_statx_in: {
    layout: protocol.STATX_IN,
    size: 24,
    at: { getattrFlags: 0, fh: 8, flags: 16, mask: 20 },
  },
  fuse_statx_out: {
    layout: protocol.STATX_OUT,
    size: 288,
    at: {
      ...{ attrValid: 0, attrValidNsec: 8, flags: 12, mask: 32, blksize: 36, attributes: 40 },
      ...{ nlink: 48, uid: 52, gid: 56, mode: 60, ino: 64, size: 72, blocks: 80 },
      ...{ attributesMask: 88, aseconds: 96, ananoseconds: 104, bseconds: 112, cseconds: 128 },
      ...{ mseconds: 144, rdevMajor: 160, rdevMinor: 164, devMajor: 168, devMinor: 172 },
    },
  },
  fuse_open_in: { layout: protocol.OPEN_IN, size: 8, at: { flags: 0 } },
  fuse_open_out: { layout: protocol.OPEN_OUT, size: 16, at: { fh: 0, openFlags: 8 } },
  fuse_read_in: {
    layout: protocol.READ_IN,
    size: 40,
    at: { fh: 0, offset: 8, size: 16, readFlags: 20, lockOwner: 24, flags: 32 },
  },
  fuse_write_in: {
    layout: protocol.WRITE_IN,
    size: 40,
    at: { fh: 0, offset: 8, size: 16, writeFlags: 20, lockOwner: 24, flags: 32 },
  },
  fuse_write_out: { layout: protocol.WRITE_OUT, size: 8, at: { size: 0 } },
  fuse_fallocate_in: {
    layout: protocol.FALLOCATE_IN,
    size: 32,
    at: { fh: 0, offset: 8, length: 16, mode: 24 },
  },
  fuse_setattr_in: {
    layout: protocol.SETATTR_IN,
    size: 88,
    at: {
      ...{ valid: 0, fh: 8, size: 16, lockOwner: 24, atime: 32, mtime: 40, ctime: 48 },
      ...{ atimensec: 56, mtimensec: 60, ctimensec: 64, mode: 68, uid: 76, gid: 80 },
    },
  },
  fuse_flush_in: { layout: protocol.FLUSH_IN, size: 24, at: { fh: 0, lockOwner: 16 } },
  fuse_dirent: { layout: protocol.DIRENT, size: 24, at: { ino: 0, off: 8, namelen: 16, type: 20 } },
  fuse_statfs_out: {
    layout: protocol.STATFS_OUT,
    size: 80,
    at: {
      ...{ blocks: 0, bfree: 8, bavail: 16, files: 24, ffree: 32 },
      ...{ bsize: 40, namelen: 44, frsize: 48 },
    },
  },
  fuse_access_in: { layout: protocol.ACCESS_IN, size: 8, at: { mask: 0 } },
  fuse_lseek_in: { layout: protocol.LSEEK_IN, size: 24, at: { fh: 0, offset: 8, whence: 16 } },
  fuse_lseek_out: { layout: protocol.LSEEK_OUT, size: 8, at: { offset: 0 } },
  fuse_getxattr_in: { layout: protocol.GETXATTR_IN, size: 8, at: { size: 0 } },
  fuse_getxattr_out: { layout: protocol.GETXATTR_OUT, size: 8, at: { size: 0 } },
  fuse_release_in: {
    layout: protocol.RELEASE_IN,
    size: 24,
    at: { fh: 0, flags: 8, releaseFlags: 12, lockOwner: 16 },
  },
}

for (const [name, { layout, size, at }] of Object.entries(cases)) {
  t.test(name, async t => {
    t.equal(layout.size, size, 'bytes')
    t.match(layout.at, at)
  })
}

t.test('flags', async t => {
  t.same(protocol.FOPEN, {
    ...{ DIRECT_IO: 1, KEEP_CACHE: 2, CACHE_DIR: 8, PARALLEL_DIRECT_WRITES: 64, PASSTHROUGH: 128 },
  })
  t.same(protocol.FATTR, { MODE: 1, UID: 2, GID: 4, SIZE: 8, FH: 64 })
  // Bits 36 and 37 of both words.
  t.same(protocol.INIT_FLAG2, { DIRECT_IO_ALLOW_MMAP: 16, PASSTHROUGH: 32 })
  t.same(protocol.INIT_FLAG, {
    ASYNC_READ: 1,
    ATOMIC_O_TRUNC: 8,
    EXPORT_SUPPORT: 16,
    BIG_WRITES: 32,
    DO_READDIRPLUS: 8192,
    READDIRPLUS_AUTO: 16384,
    ASYNC_DIO: 32768,
    PARALLEL_DIROPS: 262144,
    MAX_PAGES: 4194304,
    HANDLE_KILLPRIV_V2: 268435456,
    INIT_EXT: 1073741824,
  })
})
