/** Compressed clusters as they lie in their sectors: other bytes after them, ends missing. */
import t from 'tap'
import { inflateCluster, unzstdCluster, unzstdWithoutLibrary } from '../../src/formats/inflate.js'
import { noise, prose } from '../fixtures/model.js'
import {
  deflate,
  deflateUnfinished,
  zstdByProgram,
  zstdFrame,
  zstdSkippable,
} from '../fixtures/packers.js'
import { needs, tempFolder } from '../support/run.js'

const K = 1024
const SIZE = 64 * K
const CONTENT = prose(SIZE, 5)
const junk = noise(700, 3)

function unpacked(unpack: typeof inflateCluster, packed: Buffer, size = SIZE): Buffer {
  const cluster = Buffer.alloc(size, 0xee)
  unpack(packed, cluster)
  return cluster
}

const deflated: { title: string; packed: Buffer; content?: Buffer }[] = [
  { title: 'a stream', packed: deflate(CONTENT) },
  { title: 'with others after it', packed: Buffer.concat([deflate(CONTENT), junk]) },
  { title: 'stored blocks', packed: deflate(noise(SIZE, 1), 0), content: noise(SIZE, 1) },
  { title: 'noise', packed: deflate(noise(SIZE, 1)), content: noise(SIZE, 1) },
  { title: 'zeros', packed: deflate(Buffer.alloc(SIZE)), content: Buffer.alloc(SIZE) },
  { title: 'without an end', packed: deflateUnfinished(CONTENT) },
  {
    title: 'without an end, others after it',
    packed: Buffer.concat([deflateUnfinished(CONTENT), junk]),
  },
  {
    title: 'its end cut off',
    packed: deflate(Buffer.concat([CONTENT, junk])).subarray(0, -junk.length + 20),
  },
  { title: 'longer by a byte', packed: deflate(Buffer.concat([CONTENT, Buffer.of(7)])) },
  { title: 'longer by a cluster', packed: deflate(Buffer.concat([CONTENT, noise(SIZE, 2)])) },
  {
    title: '256 times as long',
    packed: deflate(Buffer.concat([CONTENT, Buffer.alloc(16 * K * K)])),
  },
]
for (const { title, packed, content = CONTENT } of deflated) {
  t.test(`deflate: ${title}`, async t => t.ok(unpacked(inflateCluster, packed).equals(content)))
}
for (const size of [512, 2 * K * K]) {
  t.test(`deflate: clusters of ${size} bytes`, async t => {
    const content = prose(size, 9)
    t.ok(unpacked(inflateCluster, deflate(content), size).equals(content))
  })
}

const flipped = (packed: Buffer, at: number): Buffer => {
  const copy = Buffer.from(packed)
  copy[at] = (copy[at] as number) ^ 0xff
  return copy
}
const stream = deflate(noise(SIZE, 1))
const brokenDeflate = [
  { title: 'nothing', packed: Buffer.alloc(0) },
  { title: 'noise', packed: noise(3000, 8) },
  { title: 'too short', packed: deflate(CONTENT.subarray(1)) },
  { title: 'empty', packed: deflate(Buffer.alloc(0)) },
  { title: 'cut off', packed: stream.subarray(0, stream.length / 2) },
  { title: 'a reserved block', packed: Buffer.from([7, 0, 0]) },
  { title: 'a damaged length', packed: flipped(stream, 2) },
]
for (const { title, packed } of brokenDeflate) {
  t.test(`deflate: ${title} is damage`, async t => {
    t.throws(() => unpacked(inflateCluster, packed), { name: 'ImageError', code: 'CORRUPT' })
  })
}

const half = SIZE / 2
const frames: { title: string; packed: Buffer }[] = [
  { title: 'a frame', packed: zstdFrame(CONTENT) },
  { title: 'a frame that knows its size', packed: zstdFrame(CONTENT, { hasSize: true }) },
  { title: 'with others after it', packed: Buffer.concat([zstdFrame(CONTENT), junk]) },
  {
    title: 'two',
    packed: Buffer.concat([
      zstdFrame(CONTENT.subarray(0, half)),
      zstdFrame(CONTENT.subarray(half)),
    ]),
  },
  {
    title: 'skipped and empty ones between',
    packed: Buffer.concat([
      zstdSkippable(0),
      zstdFrame(CONTENT.subarray(0, 1)),
      zstdSkippable(300),
      zstdFrame(Buffer.alloc(0)),
      zstdFrame(CONTENT.subarray(1), { hasSize: true }),
      junk,
    ]),
  },
]
for (const { title, packed } of frames) {
  t.test(`zstd: ${title}`, async t => t.ok(unpacked(unzstdCluster, packed).equals(CONTENT)))
}

t.test("zstd's own frames", needs('zstd'), async t => {
  const folder = tempFolder(t)
  const contents = [
    CONTENT,
    noise(SIZE, 1),
    Buffer.alloc(SIZE),
    Buffer.concat([prose(half, 3), noise(half, 4)]),
  ]
  const levels = [
    ['-1'],
    ['--fast=5'],
    ['-9'],
    ['-19'],
    ['--no-check'],
    ['--check'],
    ['--no-content-size', '-3'],
  ]
  for (const options of levels) {
    const packed = await zstdByProgram(folder, contents, ...options)
    for (const [index, content] of contents.entries()) {
      const frame = packed[index] as Buffer
      const behind = Buffer.concat([frame, junk])
      t.ok(unpacked(unzstdCluster, behind).equals(content), `${options} ${index}`)
      const room = Buffer.alloc(SIZE, 0xee)
      t.equal(unzstdWithoutLibrary(frame, room), SIZE)
      t.ok(room.equals(content), `without the library: ${options} ${index}`)
    }
  }
})

const frame = zstdFrame(CONTENT)
const brokenZstd = [
  { title: 'nothing', packed: Buffer.alloc(0) },
  { title: 'noise', packed: noise(3000, 8) },
  { title: 'zeros', packed: Buffer.alloc(600) },
  { title: 'too short', packed: zstdFrame(CONTENT.subarray(1)) },
  { title: 'too long by a byte', packed: zstdFrame(Buffer.concat([CONTENT, Buffer.of(7)])) },
  { title: 'cut off', packed: frame.subarray(0, -1) },
  {
    title: 'a second one that is none',
    packed: Buffer.concat([zstdFrame(CONTENT.subarray(1)), junk]),
  },
  { title: 'a skipped one that never ends', packed: zstdSkippable(1000).subarray(0, 500) },
  { title: 'a reserved block', packed: flipped(frame, 6) },
  { title: 'an unknown dictionary', packed: Buffer.from('28b52ffd01000101000000', 'hex') },
]
for (const { title, packed } of brokenZstd) {
  t.test(`zstd: ${title} is damage`, async t => {
    t.throws(() => unpacked(unzstdCluster, packed), { name: 'ImageError', code: 'CORRUPT' })
  })
}

t.test('zstd without the library', async t => {
  const room = Buffer.alloc(SIZE)
  t.equal(unzstdWithoutLibrary(zstdSkippable(30), room), 0)
  t.equal(unzstdWithoutLibrary(zstdFrame(CONTENT.subarray(0, 500)), room), 500)
  t.ok(room.subarray(0, 500).equals(CONTENT.subarray(0, 500)))
  const tooLong = zstdFrame(Buffer.concat([CONTENT, Buffer.of(7)]))
  for (const packed of [junk, flipped(frame, 6), tooLong]) {
    t.equal(unzstdWithoutLibrary(packed, room), -1)
  }
})
