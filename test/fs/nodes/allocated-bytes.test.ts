/** st_blocks and times of a disk that is written. */
import t from 'tap'
import type { ImageFs } from '../../../src/fs/protocol/image-fs.js'
import { answer } from '../../../src/fs/protocol/opcodes.js'
import { DISK, DISK_BYTES, SNAPSHOT, writtenFs } from '../fake-disk.js'
import { message, u32, u64 } from '../messages.js'
import { until } from '../../support/until.js'

/** GETATTR: fuse_attr_out, with fuse_attr after its first 16 bytes. */
function attributes(fs: ImageFs, node = DISK) {
  const payload = answer(fs, message({ opcode: 3, node, args: u64(0).repeat(2) }))!.subarray(16)
  const number = (at: number) => Number(payload.readBigUInt64LE(at))
  return {
    validSeconds: number(0),
    blocks: number(16 + 16),
    mtime: number(16 + 32) * 1000 + payload.readUInt32LE(16 + 52) / 1e6,
    mode: payload.readUInt32LE(16 + 60),
  }
}

const punch = (fs: ImageFs, length: number) =>
  answer(
    fs,
    message({
      opcode: 43,
      node: DISK,
      args: `${u64(1)} ${u64(0)} ${u64(length)} ${u32(3)} 00000000`,
    }),
  )

t.test('before the first write: the image file says when; later the disk does', async t => {
  const { fs, disk } = writtenFs()
  t.match(attributes(fs), { mtime: 1_000_000.000005, mode: 0o100640 })
  disk.modified = 1_700_000_000_123
  t.match(attributes(fs), { mtime: 1_700_000_000_123 })
  t.match(attributes(fs, SNAPSHOT), { mtime: 1_000_000.000005, mode: 0o100440 })
  t.equal(attributes(fs, SNAPSHOT).validSeconds, 365 * 86400)
})

t.test('counted again after a write, and not before', async t => {
  const { fs, disk, allocated } = writtenFs()
  allocated.fill(-1)
  const counts = () => disk.calls.filter(call => call.startsWith('begin')).length
  attributes(fs)
  t.equal(counts(), 1)
  for (let i = 0; i < 10; i++) attributes(fs)
  t.equal(counts(), 1)
  const countedAgain = (count: number) =>
    until(() => {
      attributes(fs)
      return counts() === count
    })
  disk.modified = Date.now() - 1000
  t.ok(await countedAgain(2))
  t.equal(attributes(fs).validSeconds, 1)
  disk.modified = Date.now() + 1_000_000
  t.ok(await countedAgain(3))
  t.equal(attributes(fs).validSeconds, 0, 'who has just written may write on')
  attributes(fs, SNAPSHOT)
  const before = counts()
  disk.modified++
  for (let i = 0; i < 100; i++) attributes(fs, SNAPSHOT)
  t.equal(counts(), before, 'a snapshot stays as it was')
})

t.test('counting takes a small share of the time', async t => {
  const { fs, disk } = writtenFs()
  const clock = performance.now
  let now = 0
  performance.now = () => now
  t.teardown(() => {
    performance.now = clock
  })
  const begin = disk.beginRead.bind(disk)
  disk.beginRead = (...args) => {
    begin(...args)
    now += 5
  }
  for (let i = 0; i < 200; i++) {
    now += 1
    disk.modified = Date.now() + i
    attributes(fs)
  }
  // Of 200 ms and the 5 that each count takes.
  t.equal(disk.calls.filter(call => call.startsWith('begin')).length, 1)
})

t.test('freed space is not counted any more', async t => {
  const { fs, allocated } = writtenFs()
  punch(fs, 4096)
  t.equal(allocated[0], DISK_BYTES - 4096)
  punch(fs, 4096)
  punch(fs, 4096)
  t.equal(allocated[0], 0, 'it errs to the low side')
  allocated[0] = -1
  punch(fs, 4096)
  t.equal(allocated[0], -1, 'nobody has counted yet')
})
