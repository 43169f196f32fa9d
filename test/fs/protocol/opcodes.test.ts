import { constants } from 'node:os'
import t from 'tap'
import { ImageError } from '../../../src/errors.js'
import { answer, OPCODES, opcodeName, Responder } from '../../../src/fs/protocol/opcodes.js'
import {
  type Asking,
  bytes,
  message,
  name,
  readIn,
  reply,
  text,
  UNIQUE,
  u32,
  u64,
} from '../messages.js'
import { NODE, STATS, STATUS, smallFs } from '../small-image.js'

const {
  EACCES,
  EINVAL,
  EIO,
  EISDIR,
  ENODATA,
  ENOENT,
  ESTALE,
  ENOSYS,
  ENOTDIR,
  ENOTTY,
  ENXIO,
  ERANGE,
  EROFS,
} = constants.errno

const YEAR = '8033e10100000000'
const ENTRY = (node: number, valid = YEAR) => `
  ${u64(node)} 0000000000000000 # nodeid, generation
  ${valid} ${valid}             # entry and attributes valid
  00000000 00000000`
const ATTR = (a: { ino: number; size: number; blocks: number; time: string; mode: number }) => `
  ${u64(a.ino)} ${u64(a.size)} ${u64(a.blocks)}
  ${a.time.replace(/ .*/, '').repeat(3)} ${a.time.replace(/.* /, '').repeat(3)}
  ${u32(a.mode)} ${u32(a.mode >= 0o100000 ? 1 : 2)}
  e8030000 e9030000 00000000    # uid 1000, gid 1001, rdev
  00100000 00000000             # blksize, flags`
const IMAGE_TIME = '00f1536500000000 0065cd1d' // 1700000000.5
const SNAPSHOT_TIME = '00105e5f00000000 80b2e60e' // 1600000000.25
const FOLDER = { size: 0, blocks: 0, time: IMAGE_TIME, mode: 0o040550 }
const FILE = { mode: 0o100440 }

const OPEN = (flags: number) => `${u32(flags)} 00000000`
const LSEEK = (offset: number | bigint, whence: number) =>
  `${u64(0)} ${u64(offset)} ${u32(whence)} 00000000`
const XATTR = (size: number) => `${u32(size)} 00000000`
const RELEASE = `${u64(0)} 00800000 00000000 ffffffffffffffff`
const LISTED = 'kind virtual-size format cluster-size format-version'
  .split(' ')
  .map(key => name(`user.vimgfs.${key}`))
  .join('')

t.test('a lookup, all of it in bytes', async t => {
  const got = answer(
    smallFs(t),
    bytes(`
      3100000001000000                 # length 49, opcode LOOKUP
      0807060504030201                 # unique
      0100000000000000                 # in the root
      e8030000 e9030000 e1100000 00000000
      6469736b2e72617700               # disk.raw`),
  )
  t.same(
    got,
    bytes(`
      9000000000000000                 # length 144, no error
      0807060504030201                 # unique
      1000000000000000                 # nodeid 16
      0000000000000000                 # generation
      8033e10100000000 8033e10100000000
      00000000 00000000
      1000000000000000                 # ino
      6414000000000000                 # 5220 bytes
      0300000000000000                 # three blocks: A, B, C
      00f1536500000000 00f1536500000000 00f1536500000000
      0065cd1d 0065cd1d 0065cd1d
      20810000 01000000                # a regular file, 0440; one link
      e8030000 e9030000 00000000
      00100000 00000000`),
  )
})

t.test('requests', async t => {
  const fs = smallFs(t)
  const cases: ({ title: string; error?: number; payload?: string } & Asking)[] = [
    {
      title: 'LOOKUP of a snapshot',
      opcode: 1,
      args: name('disk@first.raw'),
      payload: `${ENTRY(17)} ${ATTR({ ...FILE, ino: 17, size: 4096, blocks: 1, time: SNAPSHOT_TIME })}`,
    },
    {
      title: 'LOOKUP of a VM state',
      opcode: 1,
      args: name('disk@first.vmstate'),
      payload: `${ENTRY(18)} ${ATTR({ ...FILE, ino: 18, size: 300, blocks: 1, time: SNAPSHOT_TIME })}`,
    },
    {
      title: 'LOOKUP of a file that is not listed',
      opcode: 1,
      args: name('.vimgfs'),
      payload: `${ENTRY(2)} ${ATTR({ ...FOLDER, ino: 2 })}`,
    },
    {
      title: 'LOOKUP in the control folder: never kept',
      opcode: 1,
      node: NODE.control,
      args: name('status.json'),
      payload: `
        ${u64(4)} ${u64(0)} ${YEAR} ${u64(0)} 00000000 00000000
        ${ATTR({ ...FILE, ino: 4, size: 0, blocks: 0, time: IMAGE_TIME })}`,
    },
    {
      title: 'LOOKUP of a percent-encoded name',
      opcode: 1,
      args: name('disk@bad%2Fone.raw'),
      payload: '…',
    },
    { title: 'LOOKUP of nothing', opcode: 1, args: name('disk.qcow2'), error: ENOENT },
    { title: 'LOOKUP of an empty name', opcode: 1, args: name(''), error: ENOENT },
    { title: 'LOOKUP without a NUL', opcode: 1, args: text('disk.ra'), error: ENOENT },
    { title: 'LOOKUP of bytes that are not UTF-8', opcode: 1, args: 'ff00', error: ENOENT },
    { title: 'LOOKUP below a file', opcode: 1, node: NODE.disk, args: name('x'), error: ENOTDIR },
    {
      title: 'GETATTR of the root',
      opcode: 3,
      args: `${u32(0)} ${u32(0)} ${u64(0)}`,
      payload: `${YEAR} 00000000 00000000 ${ATTR({ ...FOLDER, ino: 1 })}`,
    },
    {
      title: 'GETATTR of a file',
      opcode: 3,
      node: NODE.first,
      payload: `${YEAR} 00000000 00000000
        ${ATTR({ ...FILE, ino: 17, size: 4096, blocks: 1, time: SNAPSHOT_TIME })}`,
    },
    {
      title: 'GETATTR of a file with a damaged table: its attributes all the same',
      opcode: 3,
      node: NODE.bad,
      payload: '…',
    },
    {
      title: 'STATX of a snapshot: it has a date of birth',
      opcode: 52,
      node: NODE.first,
      args: `${u32(0)} ${u32(0)} ${u64(0)} ${u32(0)} ${u32(0xfff)}`,
      payload: `
        ${YEAR} 00000000 00000000 ${u64(0)} ${u64(0)}
        ff0f0000 00100000 ${u64(0)}                   # mask with BTIME, blksize, attributes
        01000000 e8030000 e9030000 2081 0000          # nlink, uid, gid, mode
        ${u64(17)} ${u64(4096)} ${u64(1)} ${u64(0)}   # ino, size, blocks, attributes mask
        ${`${SNAPSHOT_TIME} 00000000`.repeat(4)}
        ${u64(0)} ${u64(0)} ${u64(0).repeat(14)}`,
    },
    {
      title: 'STATX of the disk: its birth time is unknown',
      opcode: 52,
      node: NODE.disk,
      args: `${u32(0)} ${u32(0)} ${u64(0)} ${u32(0)} ${u32(0xfff)}`,
      payload: `
        ${YEAR} 00000000 00000000 ${u64(0)} ${u64(0)}
        ff070000 00100000 ${u64(0)}
        01000000 e8030000 e9030000 2081 0000
        ${u64(16)} ${u64(5220)} ${u64(3)} ${u64(0)}
        ${`${IMAGE_TIME} 00000000`.repeat(4)}
        ${u64(0)} ${u64(0)} ${u64(0).repeat(14)}`,
    },
    { title: 'READLINK', opcode: 5, node: NODE.disk, error: EINVAL },
    {
      title: 'OPEN for reading: pages stay',
      opcode: 14,
      node: NODE.disk,
      args: OPEN(0o100000),
      payload: `${u64(0)} 02000000 00000000`,
    },
    {
      title: 'OPEN of a control file: no page is kept',
      opcode: 14,
      node: NODE.stats,
      args: OPEN(0),
      payload: `${u64(0)} 01000000 00000000`,
    },
    { title: 'OPEN for writing', opcode: 14, node: NODE.disk, args: OPEN(1), error: EROFS },
    { title: 'OPEN for both', opcode: 14, node: NODE.disk, args: OPEN(2), error: EROFS },
    { title: 'OPEN to truncate', opcode: 14, node: NODE.disk, args: OPEN(0o1000), error: EROFS },
    { title: 'OPEN of a folder', opcode: 14, args: OPEN(0), error: EISDIR },
    {
      title: 'READ across clusters',
      opcode: 15,
      node: NODE.disk,
      args: readIn({ offset: 510, size: 4 }),
      payload: text('AABB'),
    },
    {
      title: 'READ of a hole, of zeros and of data after them',
      opcode: 15,
      node: NODE.disk,
      args: readIn({ offset: 1023, size: 1026 }),
      payload: `${text('B')} ${'00'.repeat(1024)} ${text('C')}`,
    },
    {
      title: 'READ over the end',
      opcode: 15,
      node: NODE.disk,
      args: readIn({ offset: 5216, size: 4096 }),
      payload: '00000000',
    },
    { title: 'READ at the end', opcode: 15, node: NODE.disk, args: readIn({ offset: 5220 }) },
    {
      title: 'READ past the end',
      opcode: 15,
      node: NODE.disk,
      args: readIn({ offset: 2 ** 52 }),
    },
    { title: 'READ of nothing', opcode: 15, node: NODE.disk, args: readIn({ size: 0 }) },
    {
      title: 'READ of a snapshot',
      opcode: 15,
      node: NODE.first,
      args: readIn({ offset: 511, size: 2 }),
      payload: `${text('a')}00`,
    },
    {
      title: 'READ of a VM state',
      opcode: 15,
      node: NODE.vmstate,
      args: readIn({}),
      payload: text('V'.repeat(300)),
    },
    {
      title: 'READ before the damage',
      opcode: 15,
      node: NODE.bad,
      args: readIn({ size: 512 }),
      payload: text('A'.repeat(512)),
    },
    {
      title: 'READ of the damage',
      opcode: 15,
      node: NODE.bad,
      args: readIn({ offset: 512, size: 1 }),
      error: EIO,
    },
    {
      title: 'READ past it',
      opcode: 15,
      node: NODE.bad,
      args: readIn({ offset: 1024, size: 2 }),
      payload: '0000',
    },
    {
      title: 'READ of more than was negotiated',
      opcode: 15,
      node: NODE.disk,
      args: readIn({ size: 2 ** 20 + 1 }),
      error: EINVAL,
    },
    { title: 'READ of a folder', opcode: 15, args: readIn({}), error: EISDIR },
    {
      title: 'READ of status.json',
      opcode: 15,
      node: NODE.status,
      args: readIn({}),
      payload: text(STATUS),
    },
    {
      title: 'READ on in status.json',
      opcode: 15,
      node: NODE.status,
      args: readIn({ offset: 1, size: 3 }),
      payload: text(STATUS.slice(1, 4)),
    },
    {
      title: 'READ at the end of status.json',
      opcode: 15,
      node: NODE.status,
      args: readIn({ offset: STATUS.length }),
    },
    {
      title: 'READ past the end of status.json',
      opcode: 15,
      node: NODE.status,
      args: readIn({ offset: 4096 }),
    },
    {
      title: 'READ of stats.json',
      opcode: 15,
      node: NODE.stats,
      args: readIn({}),
      payload: text(STATS),
    },
    {
      title: 'STATFS',
      opcode: 17,
      payload: `
        ${u64(2)} ${u64(0)} ${u64(0)}            # 5220 bytes are two blocks, none free
        ${u64(4)} ${u64(0)}                      # four files
        00100000 ff000000 00100000 00000000      # bsize, namelen, frsize
        ${'00'.repeat(24)}`,
    },
    { title: 'RELEASE', opcode: 18, node: NODE.disk, args: RELEASE },
    { title: 'FSYNC', opcode: 20, node: NODE.disk, args: `${u64(0)} ${u64(0)}` },
    {
      title: 'GETXATTR, size',
      opcode: 22,
      node: NODE.first,
      args: XATTR(0) + name('user.vimgfs.snapshot-id'),
      payload: '01000000 00000000',
    },
    {
      title: 'GETXATTR, value',
      opcode: 22,
      node: NODE.first,
      args: XATTR(24) + name('user.vimgfs.snapshot-date'),
      payload: text('2020-09-13T12:26:40.250Z'),
    },
    {
      title: 'GETXATTR, too little room',
      opcode: 22,
      node: NODE.first,
      args: XATTR(23) + name('user.vimgfs.snapshot-date'),
      error: ERANGE,
    },
    {
      title: 'GETXATTR of the name as it is in the image',
      opcode: 22,
      node: NODE.bad,
      args: XATTR(100) + name('user.vimgfs.snapshot-name'),
      payload: text('bad/one'),
    },
    {
      title: 'GETXATTR of the format',
      opcode: 22,
      node: NODE.disk,
      args: XATTR(100) + name('user.vimgfs.format'),
      payload: text('qcow2'),
    },
    {
      title: 'GETXATTR of a missing attribute',
      opcode: 22,
      node: NODE.disk,
      args: XATTR(100) + name('user.vimgfs.snapshot-id'),
      error: ENODATA,
    },
    {
      title: 'GETXATTR of another namespace',
      opcode: 22,
      node: NODE.disk,
      args: XATTR(0) + name('security.capability'),
      error: ENODATA,
    },
    {
      title: 'GETXATTR of a name every object has',
      opcode: 22,
      node: NODE.disk,
      args: XATTR(0) + name('user.vimgfs.constructor'),
      error: ENODATA,
    },
    {
      title: 'GETXATTR of a folder',
      opcode: 22,
      args: XATTR(0) + name('user.vimgfs.format'),
      error: ENODATA,
    },
    {
      title: 'LISTXATTR, size',
      opcode: 23,
      node: NODE.disk,
      args: XATTR(0),
      payload: `${u32(bytes(LISTED).length)} 00000000`,
    },
    { title: 'LISTXATTR, names', opcode: 23, node: NODE.disk, args: XATTR(1000), payload: LISTED },
    {
      title: 'LISTXATTR, too little room',
      opcode: 23,
      node: NODE.disk,
      args: XATTR(9),
      error: ERANGE,
    },
    { title: 'LISTXATTR of a folder', opcode: 23, args: XATTR(10) },
    { title: 'FLUSH', opcode: 25, node: NODE.disk, args: `${u64(0)} ${u64(0)} ${u64(0)}` },
    { title: 'INIT, once more', opcode: 26, args: u64(0) + u64(0), error: EINVAL },
    {
      title: 'OPENDIR: the listing stays',
      opcode: 27,
      args: OPEN(0o200000),
      payload: `${u64(0)} 0a000000 00000000`,
    },
    { title: 'OPENDIR of a file', opcode: 27, node: NODE.disk, args: OPEN(0), error: ENOTDIR },
    {
      title: 'READDIR',
      opcode: 28,
      args: readIn({}),
      payload: `
        ${u64(1)} ${u64(1)} 01000000 04000000 ${text('.')} 00000000000000
        ${u64(1)} ${u64(2)} 02000000 04000000 ${text('..')} 000000000000
        ${u64(16)} ${u64(3)} 08000000 08000000 ${text('disk.raw')}
        ${u64(17)} ${u64(4)} 0e000000 08000000 ${text('disk@first.raw')} 0000
        ${u64(18)} ${u64(5)} 12000000 08000000 ${text('disk@first.vmstate')} 000000000000
        ${u64(19)} ${u64(6)} 12000000 08000000 ${text('disk@bad%2Fone.raw')} 000000000000`,
    },
    { title: 'READDIR at its end', opcode: 28, args: readIn({ offset: 6 }) },
    { title: 'READDIR far past its end', opcode: 28, args: readIn({ offset: 2 ** 40 }) },
    {
      title: 'READDIR of the control folder',
      opcode: 28,
      node: NODE.control,
      args: readIn({ offset: 1 }),
      payload: `
        ${u64(1)} ${u64(2)} 02000000 04000000 ${text('..')} 000000000000
        ${u64(3)} ${u64(3)} 0a000000 08000000 ${text('stats.json')} 000000000000
        ${u64(4)} ${u64(4)} 0b000000 08000000 ${text('status.json')} 0000000000`,
    },
    { title: 'READDIR of a file', opcode: 28, node: NODE.disk, args: readIn({}), error: ENOTDIR },
    {
      title: 'READDIRPLUS: dots have no entry, counted files have one',
      opcode: 44,
      args: readIn({ offset: 1, size: 400 }),
      payload: `
        ${'00'.repeat(128)}
        ${u64(1)} ${u64(2)} 02000000 04000000 ${text('..')} 000000000000
        ${ENTRY(16)} ${ATTR({ ...FILE, ino: 16, size: 5220, blocks: 3, time: IMAGE_TIME })}
        ${u64(16)} ${u64(3)} 08000000 08000000 ${text('disk.raw')}`,
    },
    {
      title: 'READDIRPLUS of a file',
      opcode: 44,
      node: NODE.disk,
      args: readIn({}),
      error: ENOTDIR,
    },
    { title: 'RELEASEDIR', opcode: 29, args: RELEASE },
    { title: 'FSYNCDIR', opcode: 30, args: `${u64(0)} ${u64(0)}` },
    { title: 'ACCESS, reading', opcode: 34, node: NODE.disk, args: `${u32(4)} 00000000` },
    {
      title: 'ACCESS, executing a disk',
      opcode: 34,
      node: NODE.disk,
      args: `${u32(1)} 00000000`,
      error: EACCES,
    },
    { title: 'ACCESS, entering a folder', opcode: 34, args: `${u32(5)} 00000000` },
    {
      title: 'ACCESS, writing',
      opcode: 34,
      node: NODE.disk,
      args: `${u32(6)} 00000000`,
      error: EROFS,
    },
    { title: 'BMAP', opcode: 37, node: NODE.disk, args: u64(0) + u64(0), error: ENOSYS },
    { title: 'DESTROY', opcode: 38 },
    { title: 'IOCTL', opcode: 39, node: NODE.disk, args: u64(0).repeat(4), error: ENOTTY },
    { title: 'POLL', opcode: 40, node: NODE.disk, args: u64(0).repeat(3), error: ENOSYS },
    {
      title: 'LSEEK to data, in data',
      opcode: 46,
      node: NODE.disk,
      args: LSEEK(1, 3),
      payload: u64(1),
    },
    {
      title: 'LSEEK to data, over a hole',
      opcode: 46,
      node: NODE.disk,
      args: LSEEK(1024, 3),
      payload: u64(2048),
    },
    {
      title: 'LSEEK to data, none left',
      opcode: 46,
      node: NODE.disk,
      args: LSEEK(2560, 3),
      error: ENXIO,
    },
    {
      title: 'LSEEK to a hole',
      opcode: 46,
      node: NODE.disk,
      args: LSEEK(0, 4),
      payload: u64(1024),
    },
    {
      title: 'LSEEK to a hole, in one',
      opcode: 46,
      node: NODE.disk,
      args: LSEEK(1600, 4),
      payload: u64(1600),
    },
    {
      title: 'LSEEK to a hole at the end',
      opcode: 46,
      node: NODE.disk,
      args: LSEEK(2048, 4),
      payload: u64(2560),
    },
    { title: 'LSEEK at the end', opcode: 46, node: NODE.disk, args: LSEEK(5220, 4), error: ENXIO },
    {
      title: 'LSEEK far past it',
      opcode: 46,
      node: NODE.disk,
      args: LSEEK(2n ** 63n - 1n, 3),
      error: ENXIO,
    },
    {
      title: 'LSEEK in another way',
      opcode: 46,
      node: NODE.disk,
      args: LSEEK(0, 2),
      error: EINVAL,
    },
    {
      title: 'LSEEK in a VM state: its end is a hole',
      opcode: 46,
      node: NODE.vmstate,
      args: LSEEK(0, 4),
      payload: u64(300),
    },
    { title: 'LSEEK over damage', opcode: 46, node: NODE.bad, args: LSEEK(512, 3), error: EIO },
    {
      title: 'LSEEK in a control file',
      opcode: 46,
      node: NODE.status,
      args: LSEEK(0, 3),
      error: EINVAL,
    },
  ]
  for (const { title, error, payload, ...asking } of cases) {
    const got = answer(fs, message(asking))
    if (payload === '…') t.equal(got?.readInt32LE(4), 0, title)
    else t.same(got, reply({ ...(error && { error }), ...(payload && { payload }) }), title)
  }
})

t.test('requests that would change something', async t => {
  const fs = smallFs(t)
  const changing = {
    SETATTR: 4,
    SYMLINK: 6,
    MKNOD: 8,
    MKDIR: 9,
    UNLINK: 10,
    RMDIR: 11,
    RENAME: 12,
    LINK: 13,
    WRITE: 16,
    SETXATTR: 21,
    REMOVEXATTR: 24,
    CREATE: 35,
    FALLOCATE: 43,
    RENAME2: 45,
    COPY_FILE_RANGE: 47,
    TMPFILE: 51,
  }
  for (const [title, opcode] of Object.entries(changing)) {
    const asking = { opcode, node: NODE.disk, args: '00'.repeat(200) }
    t.same(answer(fs, message(asking)), reply({ error: EROFS }), title)
    t.equal(opcodeName(opcode), title)
  }
})

t.test('messages that expect no reply', async t => {
  const fs = smallFs(t)
  t.equal(answer(fs, message({ opcode: 2, node: 16, args: u64(1) })), undefined, 'FORGET')
  const two = `${u32(2)} 00000000 ${u64(16)} ${u64(1)} ${u64(99)} ${u64(1)}`
  t.equal(answer(fs, message({ opcode: 42, args: two })), undefined, 'BATCH_FORGET')
  t.equal(answer(fs, message({ opcode: 36, args: UNIQUE })), undefined, 'INTERRUPT')
  for (const length of [0, 1, 39]) {
    const cut = message({ opcode: 3 }).subarray(0, length)
    t.equal(answer(fs, cut), undefined, `a header of ${length} bytes: whom to answer?`)
  }
})

t.test('messages without all of their arguments', async t => {
  const fs = smallFs(t)
  const needed = {
    1: 1,
    4: 88,
    14: 8,
    15: 40,
    16: 40,
    18: 24,
    22: 8,
    23: 8,
    25: 24,
    27: 8,
    28: 40,
    29: 24,
    34: 8,
    43: 32,
    44: 40,
    46: 24,
    52: 24,
  }
  for (const [opcode, length] of Object.entries(needed)) {
    for (const have of [0, length - 1]) {
      const asking = { opcode: Number(opcode), node: NODE.disk, args: '00'.repeat(have) }
      const title = `${opcodeName(asking.opcode)} with ${have} of ${length} bytes`
      t.same(answer(fs, message(asking)), reply({ error: EINVAL }), title)
    }
  }
})

t.test('opcodes that do not exist, yet or any more', async t => {
  const fs = smallFs(t)
  // 31 to 33 are locks, which the kernel keeps itself; 48 and 49 are DAX; 50 is SYNCFS.
  for (const opcode of [
    0,
    7,
    19,
    31,
    32,
    33,
    41,
    48,
    49,
    50,
    53,
    63,
    64,
    4096,
    2 ** 31,
    2 ** 32 - 1,
  ]) {
    const asking = { opcode, node: 99, args: '00'.repeat(64) }
    t.same(answer(fs, message(asking)), reply({ error: ENOSYS }), opcodeName(opcode))
  }
})

t.test('nodes that do not exist', async t => {
  const fs = smallFs(t)
  for (const opcode of [1, 3, 14, 15, 22, 23, 27, 28, 34, 44, 46, 52]) {
    for (const node of [0, 5, 20, 2 ** 53]) {
      const asking = { opcode, node, args: '00'.repeat(64) }
      t.same(
        answer(fs, message(asking)),
        reply({ error: opcode === 1 ? ENOENT : ESTALE }),
        `${opcodeName(opcode)} of ${node}`,
      )
    }
  }
})

t.test('an exception: an errno to the caller, the error to the log', async t => {
  const cases = [
    { title: 'a bug', error: new Error('a bug'), errno: EIO },
    { title: 'not even an error', error: 'text', errno: EIO },
    { title: 'nothing', error: undefined, errno: EIO },
    { title: 'damage', error: new ImageError('CORRUPT', 'damage'), errno: EIO },
    { title: 'a refusal', error: new ImageError('REFUSED', 'no'), errno: EACCES },
    {
      title: "Node's own",
      error: Object.assign(new Error('open'), { errno: -ENOENT }),
      errno: ENOENT,
    },
  ]
  for (const { title, error, errno } of cases) {
    const fs = smallFs(t)
    fs.read = () => {
      throw error
    }
    const reported: unknown[] = []
    const responder = new Responder(fs, (...what) => reported.push(what))
    const asked = message({ opcode: 15, node: NODE.disk, args: readIn({}) })
    const length = responder.answer(asked, asked.length)
    t.same(responder.reply.subarray(0, length), reply({ error: errno }), title)
    t.same(reported, [[error, 15]])

    const next = message({ opcode: 38 })
    t.equal(responder.answer(next, next.length), 16, 'it goes on')
    t.equal(reported.length, 1)
  }
})

t.test('only the message counts, not older bytes of the buffer', async t => {
  const responder = new Responder(smallFs(t), () => {})
  const buffer = Buffer.alloc(4096, 'x')
  const asked = message({ opcode: 1, args: text('disk.raw') })
  asked.copy(buffer)
  t.equal(responder.answer(buffer, asked.length), 144, 'the name ends where the message does')
})

t.test('allow_root', async t => {
  const fs = smallFs(t, [0, 1000])
  const openToAll = new Set([15, 16, 18, 20, 25, 26, 28, 29, 30, 38, 43, 44])
  for (const entry of OPCODES) {
    if (entry?.run === undefined) continue
    const asking = { opcode: entry.opcode, node: NODE.disk, args: '00'.repeat(88) }
    const errorFor = (uid: number) => answer(fs, message({ ...asking, uid }))?.readInt32LE(4)
    for (const uid of [0, 1000]) t.not(errorFor(uid), -EACCES, `${entry.name} by ${uid}`)
    const isOpen = openToAll.has(entry.opcode)
    t.equal(
      errorFor(1001) === -EACCES,
      !isOpen,
      `${entry.name} by another: ${isOpen ? 'open' : 'closed'}`,
    )
  }
})
