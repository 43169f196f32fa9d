import t from 'tap'
import { answerInit } from '../../../src/fs/protocol/init.js'
import { bytes, UNIQUE, u32 } from '../messages.js'

/** What Linux 6.18 offers in `flags`: nearly everything. */
const ALL_FLAGS = 0xf3fffffb
const MAX_PAGES = 1 << 22
const INIT_EXT = 1 << 30

/** fuse_init_in; kernels before 7.36 end it after `flags`. */
function init(
  major: number,
  minor: number,
  flags: number,
  readahead = 131072,
  flags2 = 0xffffffff,
): Buffer {
  const extension = minor >= 36 ? `${u32(flags2)} ${'00'.repeat(44)}` : ''
  const args = bytes(`
    ${u32(major)} ${u32(minor)}
    ${u32(readahead)} ${u32(flags)}
    ${extension}`)
  const head = bytes(`
    ${u32(40 + args.length)} 1a000000 # opcode INIT
    ${UNIQUE}
    0000000000000000 00000000 00000000 00000000 00000000`)
  return Buffer.concat([head, args])
}

t.test('the answer, all of it in bytes', async t => {
  const { reply, isFinal, minor } = answerInit(init(7, 38, ALL_FLAGS))
  t.same(
    reply,
    bytes(`
      5000000000000000 ${UNIQUE}
      07000000 26000000         # 7.38
      00001000                  # readahead up to 1 MiB
      39e04450                  # the flags below
      4000 3000                 # max_background, congestion_threshold
      00001000 01000000         # max_write, time_gran
      0001 0000                 # max_pages 256, map_alignment
      10000000 00000000         # flags2: DIRECT_IO_ALLOW_MMAP; max_stack_depth
      ${'00'.repeat(24)}`),
  )
  t.ok(isFinal)
  t.equal(minor, 38)
})

t.test('kernels', async t => {
  const ours = {
    ASYNC_READ: 0,
    ATOMIC_O_TRUNC: 3,
    EXPORT_SUPPORT: 4,
    BIG_WRITES: 5,
    DO_READDIRPLUS: 13,
    READDIRPLUS_AUTO: 14,
    ASYNC_DIO: 15,
  }
  const later = { PARALLEL_DIROPS: 18, MAX_PAGES: 22 }
  const latest = { HANDLE_KILLPRIV_V2: 28, INIT_EXT: 30 }
  const wanted = Object.values({ ...ours, ...later, ...latest }).reduce(
    (all, bit) => all + 2 ** bit,
    0,
  )
  const cases = [
    // Linux 4.18 does not know MAX_PAGES (7.28).
    { minor: 27, offered: 0x1fffff, flags: wanted & 0x1fffff, pages: 0 },
    { minor: 31, offered: 0xfffffff, flags: wanted & 0xfffffff, pages: 256 },
    {
      ...{ minor: 31, offered: 0xfffffff & ~MAX_PAGES, pages: 0 },
      flags: wanted & 0xfffffff & ~MAX_PAGES,
    },
    { minor: 38, offered: ALL_FLAGS, flags: wanted, pages: 256, flags2: 16 },
    { minor: 38, offered: (ALL_FLAGS & ~INIT_EXT) >>> 0, flags: wanted & ~INIT_EXT, pages: 256 },
    { minor: 45, offered: 0xffffffff, flags: wanted, pages: 256, spoken: 40, flags2: 16 },
    // It says that more follows, but nothing does.
    { minor: 31, offered: 0xffffffff, flags: wanted, pages: 256 },
    { minor: 45, offered: 0, flags: 0, pages: 0, spoken: 40 },
  ]
  for (const { minor, offered, flags, pages, spoken = minor, flags2 = 0 } of cases) {
    const title = `7.${minor} with ${offered.toString(16)}`
    const answer = answerInit(init(7, minor, offered))
    t.equal(answer.reply.length, 80, title)
    t.equal(answer.reply.readUInt32LE(16), 7)
    t.equal(answer.reply.readUInt32LE(20), spoken)
    t.equal(answer.reply.readUInt32LE(28), flags)
    t.equal(answer.reply.readUInt16LE(44), pages)
    t.equal(answer.reply.readUInt32LE(48), flags2)
    t.match(answer, { isFinal: true, minor: spoken, flags })
  }
})

t.test('flags2: the features we want, if the kernel has them', async t => {
  for (const [offered2, flags2] of [
    [0, 0],
    [16, 16],
    [0xffffffef, 0],
  ] as const) {
    const { reply } = answerInit(init(7, 39, ALL_FLAGS, 131072, offered2))
    t.equal(reply.readUInt32LE(48), flags2)
  }
})

t.test('passthrough, if it is wanted and the kernel has it', async t => {
  for (const [offered2, wants, flags2, depth] of [
    [0x30, true, 0x30, 1],
    [0x30, false, 0x10, 0],
    [0x10, true, 0x10, 0],
  ] as const) {
    const { reply, hasPassthrough } = answerInit(init(7, 40, ALL_FLAGS, 131072, offered2), {
      passthrough: wants,
    })
    t.equal(reply.readUInt32LE(48), flags2)
    t.equal(reply.readUInt32LE(52), depth, 'max_stack_depth')
    t.equal(hasPassthrough, depth > 0)
  }
})

t.test('more readahead than we asked for is the kernel keeps', async t => {
  t.equal(answerInit(init(7, 38, ALL_FLAGS, 8 * 2 ** 20)).reply.readUInt32LE(24), 8 * 2 ** 20)
})

t.test('a newer major version: ours, and the kernel asks again', async t => {
  const { reply, isFinal } = answerInit(init(8, 1, ALL_FLAGS))
  t.notOk(isFinal)
  t.equal(reply.readUInt32LE(16), 7)
  t.equal(reply.readUInt32LE(28), 0)
})

t.test('kernels that are too old: said with both versions', async t => {
  for (const [major, minor] of [
    [7, 26],
    [7, 0],
    [6, 99],
  ] as const) {
    const message = `this kernel speaks FUSE ${major}.${minor}; 7.27 (Linux 4.18) is needed, or --transport libfuse with the package fuse-native`
    t.throws(() => answerInit(init(major, minor, 0)), { name: 'ProtocolError', message })
  }
})
