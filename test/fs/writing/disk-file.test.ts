/** The requests that change a disk, byte by byte, and what they ask of it. */
import { constants } from 'node:os'
import fs from 'node:fs'
import t from 'tap'
import { SystemError } from '../../../src/errors.js'
import { ImageFs } from '../../../src/fs/protocol/image-fs.js'
import { answer } from '../../../src/fs/protocol/opcodes.js'
import { OpenCounts } from '../../../src/fs/nodes/open-counts.js'
import { WRITE_CACHE } from '../../../src/fs/protocol/protocol.js'
import { DISK, DISK_BYTES, SNAPSHOT, writtenFs, writtenParts } from '../fake-disk.js'
import { type Asking, message, readIn, reply, text, u32, u64 } from '../messages.js'

const { EDQUOT, EFBIG, EINVAL, EIO, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, EROFS, ESTALE } =
  constants.errno
const { O_APPEND, O_DIRECT, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY } = fs.constants

const LOCK_OWNER = 'ffffffffffffffff'
const writeIn = (offset: number | bigint, data: string, size = data.length) => `
  ${u64(1)} ${u64(offset)} ${u32(size)} 00000000   # fh, offset, size, write_flags
  ${LOCK_OWNER} 00800000 00000000                  # lock owner, flags
  ${text(data)}`
const written = (size: number) => `${u32(size)} 00000000`
const fallocateIn = (mode: number, offset: number | bigint, length: number | bigint) =>
  `${u64(1)} ${u64(offset)} ${u64(length)} ${u32(mode)} 00000000`
const setattrIn = (
  valid: number,
  a: { size?: number; mode?: number; uid?: number; gid?: number },
) => `
  ${u32(valid)} 00000000 ${u64(1)} ${u64(a.size ?? 0)} ${LOCK_OWNER}
  ${u64(1)} ${u64(2)} ${u64(3)} ${u32(4)} ${u32(5)} ${u32(6)}   # times
  ${u32(a.mode ?? 0)} 00000000 ${u32(a.uid ?? 0)} ${u32(a.gid ?? 0)} 00000000`
const flushIn = (fh: number) => `${u64(fh)} ${u64(0)} ${LOCK_OWNER}`
const releaseIn = (fh: number) => `${u64(fh)} 02800000 00000000 ${LOCK_OWNER}`
const OPEN = (flags: number) => `${u32(flags)} 00000000`

const SETATTR = 4
const WRITE = 16
const RELEASE = 18
const PAST_CACHE = 2 ** 32
const FALLOCATE = 43
const FH = 64
const SIZE = 8
const KEEP_SIZE = 1
const PUNCH_HOLE = 2
const ZERO_RANGE = 16
const END = DISK_BYTES

interface Case extends Asking {
  title: string
  growable?: boolean
  error?: number
  /** Undefined for one that is not looked at. */
  payload?: string
  calls?: string[]
}

const cases: Case[] = [
  {
    title: 'WRITE',
    opcode: WRITE,
    args: writeIn(510, 'new bytes'),
    payload: written(9),
    calls: ['write 510 new bytes'],
  },
  { title: 'WRITE of nothing', opcode: WRITE, args: writeIn(0, ''), payload: written(0) },
  {
    title: 'WRITE up to the end',
    opcode: WRITE,
    args: writeIn(END - 3, 'end'),
    payload: written(3),
    calls: [`write ${END - 3} end`],
  },
  {
    title: 'WRITE over the end: the part that fits',
    opcode: WRITE,
    args: writeIn(END - 3, 'over'),
    payload: written(3),
    calls: [`write ${END - 3} ove`],
  },
  { title: 'WRITE at the end', opcode: WRITE, args: writeIn(END, 'x'), error: ENOSPC },
  {
    title: 'WRITE far past the end',
    opcode: WRITE,
    args: writeIn(2n ** 63n - 1n, 'x'),
    error: ENOSPC,
  },
  {
    title: 'WRITE over the end of a disk that grows',
    growable: true,
    opcode: WRITE,
    args: writeIn(END - 3, 'over'),
    payload: written(4),
    calls: [`grow ${END + 512}`, `write ${END - 3} over`],
  },
  {
    title: 'WRITE where no disk ends',
    growable: true,
    opcode: WRITE,
    args: writeIn(2n ** 60n, 'x'),
    error: EFBIG,
  },
  { title: 'WRITE of more than came', opcode: WRITE, args: writeIn(0, 'abc', 4), error: EINVAL },
  {
    title: 'WRITE to a snapshot',
    opcode: WRITE,
    node: SNAPSHOT,
    args: writeIn(0, 'x'),
    error: EROFS,
  },
  { title: 'WRITE to a control file', opcode: WRITE, node: 4, args: writeIn(0, 'x'), error: EROFS },
  { title: 'WRITE to a folder', opcode: WRITE, node: 1, args: writeIn(0, 'x'), error: EROFS },
  { title: 'WRITE to nothing', opcode: WRITE, node: 99, args: writeIn(0, 'x'), error: ESTALE },

  {
    title: 'FALLOCATE within the disk',
    opcode: FALLOCATE,
    args: fallocateIn(0, 0, END),
    calls: [`reserve 0 ${END}`],
  },
  {
    title: 'FALLOCATE, size kept',
    opcode: FALLOCATE,
    args: fallocateIn(KEEP_SIZE, 5, 6),
    calls: ['reserve 5 6'],
  },
  {
    title: 'FALLOCATE over the end',
    opcode: FALLOCATE,
    args: fallocateIn(0, 1, END),
    error: ENOSPC,
  },
  {
    title: 'FALLOCATE over the end, size kept',
    growable: true,
    opcode: FALLOCATE,
    args: fallocateIn(KEEP_SIZE, 1, END),
    error: ENOSPC,
  },
  {
    title: 'FALLOCATE over the end of a disk that grows',
    growable: true,
    opcode: FALLOCATE,
    args: fallocateIn(0, 1, END),
    calls: [`grow ${END + 512}`, `reserve 1 ${END}`],
  },
  {
    title: 'FALLOCATE where no disk ends',
    growable: true,
    opcode: FALLOCATE,
    args: fallocateIn(0, 2n ** 62n, 1),
    error: EFBIG,
  },
  {
    title: 'FALLOCATE, a hole',
    opcode: FALLOCATE,
    args: fallocateIn(PUNCH_HOLE | KEEP_SIZE, 100, 50),
    calls: ['zero 100 50'],
  },
  {
    title: 'FALLOCATE, a hole over the end',
    opcode: FALLOCATE,
    args: fallocateIn(PUNCH_HOLE | KEEP_SIZE, 100, END),
    calls: [`zero 100 ${END - 100}`],
  },
  {
    title: 'FALLOCATE, a hole past the end',
    opcode: FALLOCATE,
    args: fallocateIn(PUNCH_HOLE | KEEP_SIZE, END, 4096),
  },
  {
    title: 'FALLOCATE, zeros',
    opcode: FALLOCATE,
    args: fallocateIn(ZERO_RANGE, 0, END),
    calls: [`zero 0 ${END}`],
  },
  {
    title: 'FALLOCATE, zeros over the end, size kept',
    opcode: FALLOCATE,
    args: fallocateIn(ZERO_RANGE | KEEP_SIZE, END - 1, 99),
    calls: [`zero ${END - 1} 1`],
  },
  {
    title: 'FALLOCATE, zeros over the end',
    opcode: FALLOCATE,
    args: fallocateIn(ZERO_RANGE, END - 1, 99),
    error: ENOSPC,
  },
  {
    title: 'FALLOCATE, zeros over the end of a disk that grows',
    growable: true,
    opcode: FALLOCATE,
    args: fallocateIn(ZERO_RANGE, END - 1, 99),
    calls: [`grow ${END + 512}`, `zero ${END - 1} 99`],
  },
  ...[PUNCH_HOLE, 4, 8, 8 | KEEP_SIZE, 32, 64, ZERO_RANGE | PUNCH_HOLE | KEEP_SIZE].map(mode => ({
    title: `FALLOCATE, mode ${mode}`,
    opcode: FALLOCATE,
    args: fallocateIn(mode, 0, 4096),
    error: EOPNOTSUPP,
  })),
  {
    title: 'FALLOCATE of a snapshot',
    opcode: FALLOCATE,
    node: SNAPSHOT,
    args: fallocateIn(PUNCH_HOLE | KEEP_SIZE, 0, 1),
    error: EROFS,
  },

  {
    title: 'SETATTR of the times: all attributes, as they were',
    opcode: SETATTR,
    args: setattrIn(0x1b0, {}),
    payload: `${u64(1)} 00000000 00000000
      ${u64(DISK)} ${u64(END)} ${u64(END / 512)}
      ${u64(1000).repeat(3)} ${u32(5).repeat(3)}
      ${u32(0o100640)} 01000000 07000000 08000000 00000000
      00100000 00000000`,
  },
  {
    title: 'SETATTR, emptied by name: no write follows',
    opcode: SETATTR,
    args: setattrIn(SIZE | 512, { size: 0 }),
    error: EPERM,
  },
  {
    title: 'SETATTR, same size',
    opcode: SETATTR,
    args: setattrIn(SIZE | FH, { size: END }),
    payload: '…',
  },
  {
    title: 'SETATTR, emptied',
    opcode: SETATTR,
    args: setattrIn(SIZE | FH, { size: 0 }),
    payload: '…',
  },
  ...[1, END - 1, END + 1].flatMap(size =>
    [0, FH].map(fh => ({
      title: `SETATTR, ${size} bytes${fh ? ' by handle' : ''}`,
      opcode: SETATTR,
      args: setattrIn(SIZE | fh, { size }),
      error: EPERM,
    })),
  ),
  {
    title: 'SETATTR, larger',
    growable: true,
    opcode: SETATTR,
    args: setattrIn(SIZE | FH, { size: END + 5 }),
    calls: [`grow ${END + 512}`],
    payload: '…',
  },
  {
    title: 'SETATTR, smaller',
    growable: true,
    opcode: SETATTR,
    args: setattrIn(SIZE | FH, { size: END - 5 }),
    error: EPERM,
  },
  {
    title: 'SETATTR, emptied',
    growable: true,
    opcode: SETATTR,
    args: setattrIn(SIZE | FH, { size: 0 }),
    payload: '…',
  },
  { title: 'SETATTR, mode', opcode: SETATTR, args: setattrIn(1, { mode: 0o100600 }), error: EPERM },
  {
    title: 'SETATTR, same mode',
    opcode: SETATTR,
    args: setattrIn(1, { mode: 0o100640 }),
    payload: '…',
  },
  { title: 'SETATTR, owner', opcode: SETATTR, args: setattrIn(2, { uid: 9 }), error: EPERM },
  {
    title: 'SETATTR, same owner',
    opcode: SETATTR,
    args: setattrIn(6, { uid: 7, gid: 8 }),
    payload: '…',
  },
  { title: 'SETATTR, group', opcode: SETATTR, args: setattrIn(4, { gid: 9 }), error: EPERM },
  {
    title: 'SETATTR of a snapshot',
    opcode: SETATTR,
    node: SNAPSHOT,
    args: setattrIn(16, {}),
    error: EROFS,
  },
  {
    title: 'SETATTR of the folder',
    opcode: SETATTR,
    node: 1,
    args: setattrIn(16, {}),
    error: EROFS,
  },

  { title: 'FSYNC', opcode: 20, args: `${u64(1)} ${u64(0)}`, calls: ['flush'] },
  { title: 'FSYNC, data only', opcode: 20, args: `${u64(0)} ${u64(1)}`, calls: ['flush'] },
  { title: 'FSYNC of a snapshot', opcode: 20, node: SNAPSHOT, args: `${u64(0)} ${u64(0)}` },
  { title: 'FSYNCDIR', opcode: 30, node: 1, args: `${u64(0)} ${u64(0)}` },
  { title: 'FLUSH by a writer', opcode: 25, args: flushIn(1), calls: ['flush'] },
  { title: 'FLUSH by a reader', opcode: 25, args: flushIn(0) },
  { title: 'RELEASE by a writer', opcode: 18, args: releaseIn(1), calls: ['flush'] },
  { title: 'RELEASE by a reader', opcode: 18, args: releaseIn(0) },
  { title: 'RELEASE of a snapshot', opcode: 18, node: SNAPSHOT, args: releaseIn(0) },

  { title: 'ACCESS, writing', opcode: 34, args: `${u32(6)} 00000000` },
  {
    title: 'ACCESS, a snapshot',
    opcode: 34,
    node: SNAPSHOT,
    args: `${u32(2)} 00000000`,
    error: EROFS,
  },
  { title: 'SETXATTR', opcode: 21, args: '00'.repeat(16), error: EOPNOTSUPP },
  {
    title: 'SETXATTR of a snapshot',
    opcode: 21,
    node: SNAPSHOT,
    args: '00'.repeat(16),
    error: EROFS,
  },
  { title: 'REMOVEXATTR', opcode: 24, args: '7800', error: EOPNOTSUPP },
  { title: 'COPY_FILE_RANGE', opcode: 47, args: u64(0).repeat(7), error: ENOSYS },
  ...[6, 8, 9, 10, 11, 12, 13, 35, 45, 51].map(opcode => ({
    title: `opcode ${opcode}: the tree stays`,
    opcode,
    node: 1,
    args: '00'.repeat(64),
    error: EROFS,
  })),

  {
    title: 'READ is bracketed',
    opcode: 15,
    args: readIn({ offset: 512, size: 4 }),
    payload: text('dddd'),
    calls: ['begin 512 4', 'end'],
  },
  {
    title: 'READ of a snapshot: it is never overwritten',
    opcode: 15,
    node: SNAPSHOT,
    args: readIn({ offset: 512, size: 4 }),
    payload: '…',
    calls: ['begin 0 0', 'end'],
  },
  {
    title: 'LSEEK is bracketed',
    opcode: 46,
    args: `${u64(0)} ${u64(1)} ${u32(4)} 00000000`,
    payload: u64(END),
    calls: ['begin 0 0', 'end'],
  },
]

t.test('requests', async t => {
  for (const { title, growable, error, payload, calls = [], ...asking } of cases) {
    const { fs, disk } = writtenFs(growable)
    const got = answer(fs, message({ node: DISK, ...asking }))
    if (payload === '…') t.equal(got?.readInt32LE(4), 0, title)
    else t.same(got, reply({ ...(error && { error }), ...(payload && { payload }) }), title)
    t.same(disk.calls, calls, `${title}: what the disk is asked`)
  }
})

t.test('a read returns earlier writes, up to the current size', async t => {
  const { fs } = writtenFs(true)
  answer(fs, message({ opcode: WRITE, node: DISK, args: writeIn(END + 2, 'xy') }))
  const asked = message({ opcode: 15, node: DISK, args: readIn({ offset: END - 1, size: 99 }) })
  const zeros = (bytes: number) => '00'.repeat(bytes)
  t.same(answer(fs, asked), reply({ payload: `${text('d')}0000${text('xy')}${zeros(94)}` }))
  const statfs = answer(fs, message({ opcode: 17 }))
  t.equal(Number(statfs?.readBigUInt64LE(16)), 3, 'STATFS counts blocks of 4 KiB')
  const asking = `${u32(64)} 00000000 ${text('user.vimgfs.virtual-size\0')}`
  const size = answer(fs, message({ opcode: 22, node: DISK, args: asking }))
  t.equal(size?.toString('utf8', 16), String(END + 512))
})

t.test('the largest write', async t => {
  const { fs, disk } = writtenFs(true)
  const got = answer(
    fs,
    message({ opcode: WRITE, node: DISK, args: writeIn(0, 'w'.repeat(2 ** 20)) }),
  )
  t.same(got, reply({ payload: written(2 ** 20) }))
  t.equal(disk.bytes.toString(), 'w'.repeat(2 ** 20))
})

t.test('OPEN', async t => {
  const DIRECT = 1 | 2 | 64
  const cases = [
    { flags: O_RDONLY, fh: 0, open: 2 },
    { flags: O_WRONLY, fh: 1, open: 2 },
    { flags: O_RDWR | O_APPEND, fh: 1, open: 2 },
    { flags: O_RDWR | O_TRUNC, fh: 1, open: 3 },
    { flags: O_RDWR | O_TRUNC, fh: 1, open: 2, minor: 38 },
    { flags: O_RDONLY | O_TRUNC, fh: 1, open: 3 },
    { flags: O_RDWR | O_DIRECT, fh: 1, open: DIRECT },
    { flags: O_RDONLY | O_DIRECT, fh: 0, open: 2 },
    { flags: O_RDWR | O_DIRECT, fh: 1, open: 2, minor: 38 },
    { flags: O_RDONLY | O_DIRECT, node: SNAPSHOT, fh: 0, open: 2 },
    { flags: O_WRONLY, node: SNAPSHOT, error: EROFS },
    { flags: O_RDONLY | O_TRUNC, node: SNAPSHOT, error: EROFS },
    { flags: O_RDWR, node: 4, error: EROFS },
    { flags: O_RDWR, failure: 'gone bad', error: EROFS },
    { flags: O_RDONLY, failure: 'gone bad', fh: 0, open: 2 },
  ]
  for (const { flags, fh = 0, open = 0, minor = 39, node = DISK, failure = '', error } of cases) {
    const { fs, disk } = writtenFs()
    fs.speak(minor)
    disk.failure = failure
    const got = answer(fs, message({ opcode: 14, node, args: OPEN(flags) }))
    // The upper half of the handle says that it writes past the page cache.
    const past = fh !== 0 && (open & 1) !== 0 ? PAST_CACHE : 0
    const expected = error ? { error } : { payload: `${u64(fh + past)} ${u32(open)} 00000000` }
    t.same(got, reply(expected), `${flags.toString(8)} ${node} ${minor} ${failure}`)
    t.same(disk.calls, [])
  }
})

t.test('a reader with O_DIRECT goes past the cache while a writer does', async t => {
  const opens = new OpenCounts()
  const fs = new ImageFs({ ...writtenParts().parts, opens })
  fs.speak(39)
  const open = (flags: number) => {
    const got = answer(fs, message({ opcode: 14, node: DISK, args: OPEN(flags) })) as Buffer
    return { fh: Number(got.readBigUInt64LE(16)), flags: got.readUInt32LE(24) }
  }
  const release = (fh: number) =>
    answer(fs, message({ opcode: RELEASE, node: DISK, args: releaseIn(fh) }))
  const readerFlags = () => {
    const { fh, flags } = open(O_RDONLY | O_DIRECT)
    release(fh)
    return flags
  }
  t.equal(readerFlags(), 2)
  const cached = open(O_RDWR)
  t.equal(readerFlags(), 2, 'a writer through the cache')
  const [first, second] = [open(O_RDWR | O_DIRECT), open(O_WRONLY | O_TRUNC)]
  t.equal(readerFlags(), 1 | 2 | 64)
  release(first.fh)
  t.equal(readerFlags(), 1 | 2 | 64, 'one of two is closed')
  release(second.fh)
  t.equal(readerFlags(), 2, 'both are closed')
  t.ok(opens.isOpen(DISK))
  release(cached.fh)
  t.notOk(opens.isOpen(DISK))
})

t.test('a handle that truncates', async t => {
  const { fs, disk } = writtenFs()
  const ask = (opcode: number, args: string) => answer(fs, message({ opcode, node: DISK, args }))
  const getattr = (fh?: number) =>
    Number(
      ask(3, fh === undefined ? u64(0).repeat(2) : `${u64(1)} ${u64(fh)}`)?.readBigUInt64LE(40),
    )
  const statx = () => Number(ask(52, `${u64(0).repeat(2)} ${u64(0)}`)?.readBigUInt64LE(16 + 72))
  ask(14, OPEN(O_WRONLY | O_TRUNC))
  t.equal(getattr(), 0, 'the size that it has written')
  t.equal(getattr(0), END, 'other handles see the disk')
  t.same(disk.calls, [], 'nothing has changed')
  ask(WRITE, writeIn(100, 'data'))
  t.same(disk.calls, ['zero 0 100', 'write 100 data'])
  t.equal(getattr(), 104)
  t.equal(getattr(1), 104)
  t.equal(statx(), 104)
  ask(FALLOCATE, fallocateIn(0, 200, 100))
  t.equal(getattr(), 300, 'fallocate extends it')
  ask(FALLOCATE, fallocateIn(KEEP_SIZE, 200, 500))
  t.equal(getattr(), 300)
  t.equal(ask(SETATTR, setattrIn(SIZE | FH, { size: 1000 }))?.readInt32LE(4), 0)
  t.same(disk.calls.slice(2), [
    ...['zero 104 196', 'reserve 200 100', 'reserve 200 500', 'zero 300 700'],
  ])
  t.equal(ask(WRITE, writeIn(END, 'x'))?.readInt32LE(4), -ENOSPC)
  t.equal(
    ask(SETATTR, setattrIn(SIZE | FH, { size: END }))?.readInt32LE(4),
    -EPERM,
    'what the kernel sends after a direct write that failed',
  )
  t.equal(ask(25, flushIn(1))?.readInt32LE(4), 0)
  ask(18, releaseIn(1))
  t.equal(getattr(), END, 'the disk is as large as it was')
  t.equal(disk.bytes.toString('latin1', 1000), 'd'.repeat(END - 1000), 'the rest stays')
})

t.test('pages that are written back skip nothing', async t => {
  const { fs, disk } = writtenFs()
  const ask = (opcode: number, args: string) => answer(fs, message({ opcode, node: DISK, args }))
  ask(14, OPEN(O_WRONLY | O_TRUNC))
  const ofPages = `
    ${u64(1)} ${u64(4096)} ${u32(5)} ${u32(WRITE_CACHE)}
    ${LOCK_OWNER} 00800000 00000000
    ${text('pages')}`
  ask(WRITE, ofPages)
  t.same(disk.calls, ['write 4096 pages'], 'the handle need not be the one that changed them')
  ask(WRITE, writeIn(5000, 'data'))
  t.same(disk.calls.slice(1), ['zero 0 4096', 'zero 4101 899', 'write 5000 data'])
})

t.test('root changes the owner, the owner changes the mode', async t => {
  const { fs } = writtenFs()
  const ask = (uid: number, valid: number, to: { mode?: number; uid?: number; gid?: number }) =>
    answer(fs, message({ opcode: SETATTR, node: DISK, uid, args: setattrIn(valid, to) }))
  t.equal(ask(9, 1, { mode: 0o100666 })?.readInt32LE(4), -EPERM)
  t.equal(ask(7, 2, { uid: 9 })?.readInt32LE(4), -EPERM)
  t.equal(ask(7, 1, { mode: 0o104644 })?.readUInt32LE(16 + 16 + 60), 0o100644)
  t.equal(ask(0, 6, { uid: 64055, gid: 2 ** 32 - 2 })?.readUInt32LE(16 + 16 + 68), 64055)
  const now = answer(fs, message({ opcode: 3, node: DISK }))
  t.same(
    [60, 68, 72].map(at => now?.readUInt32LE(32 + at)),
    [0o100644, 64055, 2 ** 32 - 2],
  )
  t.equal(ask(7, 1, { mode: 0o100600 })?.readInt32LE(4), -EPERM, 'it is no longer theirs')
  const snapshot = answer(fs, message({ opcode: 3, node: SNAPSHOT }))
  t.equal(snapshot?.readUInt32LE(32 + 68), 7)
})

t.test('attributes that nothing can be, and names of nodes', async t => {
  const { fs } = writtenFs()
  const getxattr = (name: string) => `${u32(64)} 00000000 ${text(`${name}\0`)}`
  for (const node of [DISK, SNAPSHOT, 1]) {
    const got = answer(fs, message({ opcode: 22, node, args: getxattr('trusted.libvirt.x') }))
    t.equal(got?.readInt32LE(4), -EOPNOTSUPP)
    const self = answer(fs, message({ opcode: 1, node, args: text('.\0') }))
    t.equal(Number(self?.readBigUInt64LE(16)), node)
    const above = answer(fs, message({ opcode: 1, node, args: text('..\0') }))
    t.equal(Number(above?.readBigUInt64LE(16)), 1)
  }
  t.equal(answer(fs, message({ opcode: 1, node: 99, args: text('.\0') }))?.readInt32LE(4), -ESTALE)
})

t.test(
  'a program that empties it by ftruncate and writes nothing learns that it is not empty',
  async t => {
    const { fs, disk } = writtenFs()
    const ask = (opcode: number, args: string) =>
      answer(fs, message({ opcode, node: DISK, args }))?.readInt32LE(4)
    ask(14, OPEN(O_WRONLY))
    ask(SETATTR, setattrIn(SIZE | FH, { size: 0 }))
    t.equal(ask(25, flushIn(1)), -EPERM)
    ask(WRITE, writeIn(0, 'x'))
    t.equal(ask(25, flushIn(1)), 0)
    t.notMatch(disk.calls.join(), /zero/)
  },
)

t.test("the caller gets the disk's error", async t => {
  const { fs, disk } = writtenFs()
  const ask = (opcode: number, args: string) =>
    answer(fs, message({ opcode, node: DISK, args }))?.readInt32LE(4)
  for (const errno of [EIO, ENOSPC, EDQUOT]) {
    disk.error = new SystemError('write', errno)
    t.equal(ask(WRITE, writeIn(0, 'x')), -errno)
    t.equal(ask(FALLOCATE, fallocateIn(PUNCH_HOLE | KEEP_SIZE, 0, 1)), -errno)
    t.equal(ask(20, `${u64(1)} ${u64(0)}`), -errno, 'FSYNC')
    t.equal(ask(25, flushIn(1)), -errno, 'FLUSH: close() tells')
  }
  disk.error = undefined
  disk.failure = 'a sync failed'
  t.equal(ask(WRITE, writeIn(0, 'x')), -EROFS)
  t.equal(ask(15, readIn({ size: 1 })), 0, 'it is read')
  disk.failure = ''
  disk.beginRead = () => {
    throw new Error('no lock')
  }
  const before = disk.calls.length
  t.equal(ask(15, readIn({ size: 1 })), -EIO)
  t.notOk(disk.calls.slice(before).includes('end'), 'what did not begin does not end')
})

t.test('flushes are counted where a request asks for one', async t => {
  const { fs, flushes } = writtenFs()
  for (const [opcode, args] of [
    [20, `${u64(1)} ${u64(0)}`],
    [25, flushIn(1)],
    [25, flushIn(0)],
    [18, releaseIn(1)],
    [WRITE, writeIn(0, 'x')],
  ] as const) {
    answer(fs, message({ opcode, node: DISK, args }))
  }
  t.equal(flushes(), 3)
})
