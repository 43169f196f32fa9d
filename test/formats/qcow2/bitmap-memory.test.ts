import t from 'tap'
import { type BitmapMemory, loadBitmaps } from '../../../src/formats/qcow2/bitmap-memory.js'
import { readHeader } from '../../../src/formats/qcow2/header.js'
import { MemoryStore } from '../../support/stores.js'
import {
  AUTO,
  type BitmapImage,
  type BitmapImageSpec,
  type BitmapSpec,
  buildBitmapImage,
  IN_USE,
} from './bitmap-image.js'

const M = 2 ** 20
const SPEC: BitmapImageSpec = {
  clusterBits: 9,
  sizeBytes: 8 * M,
  bitmaps: [
    // A bit is a sector: a chunk of 4096 bits is 2 MiB of the disk.
    { name: 'fine', flags: AUTO, granularityBits: 9, bits: [0, 9, 4096 + 8191, 16383] },
    { name: 'coarse', flags: AUTO, granularityBits: 16, bits: [3] },
    { name: 'disabled', flags: 0, granularityBits: 16, bits: [1] },
    { name: 'in use', flags: AUTO | IN_USE, granularityBits: 16, bits: [2] },
  ],
}

const load = (bytes: Buffer, isSole: (at: number) => boolean = () => true): BitmapMemory => {
  const store = new MemoryStore('disk.qcow2', bytes)
  return loadBitmaps(store, readHeader(store), isSole)
}

const bitsOf = (memory: BitmapMemory, name: string): number[] => {
  const bytes = new Uint8Array(memory.bitmaps.find(bitmap => bitmap.name === name)!.record!.bits)
  const bits: number[] = []
  bytes.forEach((byte, at) => {
    for (let i = 0; byte >> i > 0; i++) if ((byte >> i) & 1) bits.push(8 * at + i)
  })
  return bits
}

const withBitmap = (bitmap: Partial<BitmapSpec>, sizeBytes = 8 * M): BitmapImageSpec => ({
  clusterBits: 9,
  sizeBytes,
  bitmaps: [{ name: 'b', flags: AUTO, granularityBits: 9, ...bitmap }],
})

t.test('bitmaps that record have their bits in memory, with room to grow', async t => {
  const memory = load(buildBitmapImage(SPEC).bytes)
  t.same(
    memory.bitmaps.map(({ name }) => name),
    ['fine', 'coarse', 'disabled'],
  )
  t.same(bitsOf(memory, 'fine'), [0, 9, 12287, 16383])
  t.same(bitsOf(memory, 'coarse'), [3])
  t.equal(memory.bitmaps[2]!.record, undefined)
  t.ok(memory.bitmaps[0]!.record!.bits.byteLength >= 16 * 2048)
  t.same(memory.warnings, [])
  t.equal(memory.areLost, false)
})

t.test('bits', async t => {
  const cases: { title: string; spec: BitmapImageSpec; bits: readonly number[] }[] = [
    { title: 'a chunk of ones', spec: withBitmap({ ones: [1] }, 4 * M), bits: range(4096, 8192) },
    {
      title: 'ones in a chunk that the disk does not fill',
      spec: withBitmap({ ones: [0] }, 5 * 512),
      bits: range(0, 5),
    },
    {
      title: 'bits after the disk',
      spec: withBitmap({ hasTail: true, bits: [1] }, 5 * 512),
      bits: [1],
    },
    {
      title: 'a disk that ends inside a piece',
      spec: withBitmap({ bits: [2] }, 2 * 512 + 1),
      bits: [2],
    },
  ]
  for (const { title, spec, bits } of cases) {
    t.test(title, async t => t.same(bitsOf(load(buildBitmapImage(spec).bytes), 'b'), bits))
  }
})

t.test('an image without bitmaps, or whose bitmaps are void, has none to keep', async t => {
  const { bytes } = buildBitmapImage(SPEC)
  bytes.writeBigUInt64BE(0n, 88)
  const { bitmaps, areLost, warnings } = load(bytes)
  t.same({ bitmaps, areLost, warnings }, { bitmaps: [], areLost: false, warnings: [] })
})

t.test('a bitmap that cannot be kept leaves the others alone', async t => {
  const others = SPEC.bitmaps.slice(0, 3)
  type Damage = (bytes: Buffer, image: BitmapImage) => void
  const cases: { title: string; bad?: Partial<BitmapSpec>; damage?: Damage; problem: RegExp }[] = [
    { title: 'unknown flags', bad: { flags: AUTO | 8 }, problem: /unknown flags/ },
    { title: 'extra data', bad: { extra: Buffer.from('extra') }, problem: /unknown kind/ },
    {
      title: 'a table of another size',
      damage: (b, { entryAt }) => b.writeUInt32BE(3, entryAt[3]! + 8),
      problem: /has 3 entries/,
    },
    {
      title: 'a table that is not aligned',
      damage: (b, { entryAt, tableAt }) => b.writeBigUInt64BE(BigInt(tableAt[3]! + 8), entryAt[3]!),
      problem: /not aligned/,
    },
    {
      title: 'a table beyond the end of the file',
      damage: (b, { entryAt }) => b.writeBigUInt64BE(1n << 40n, entryAt[3]!),
      problem: /beyond the end/,
    },
    {
      title: 'a table offset above 2^53',
      damage: (b, { entryAt }) => b.writeBigUInt64BE(0xffff_ffff_ffff_fe00n, entryAt[3]!),
      problem: /beyond the end/,
    },
    {
      title: 'reserved bits in an entry',
      damage: (b, { tableAt }) => b.writeBigUInt64BE(2n, tableAt[3]!),
      problem: /entry 0/,
    },
    {
      title: 'a cluster of bits beyond the end of the file',
      damage: (b, { tableAt }) => b.writeBigUInt64BE(1n << 40n, tableAt[3]! + 8),
      problem: /entry 1/,
    },
    {
      title: 'a cluster that the header has',
      damage: (b, { tableAt }) => b.writeBigUInt64BE(b.readBigUInt64BE(40), tableAt[3]!),
      problem: /used elsewhere/,
    },
    {
      title: 'a cluster of another bitmap',
      damage: (b, { tableAt }) => b.writeBigUInt64BE(b.readBigUInt64BE(tableAt[0]!), tableAt[3]!),
      problem: /used elsewhere/,
    },
    {
      title: 'the table of another bitmap',
      damage: (b, { entryAt, tableAt }) => b.writeBigUInt64BE(BigInt(tableAt[0]!), entryAt[3]!),
      problem: /used elsewhere/,
    },
  ]
  for (const { title, bad = {}, damage, problem } of cases) {
    t.test(title, async t => {
      const bitmap = { name: 'bad\n', flags: AUTO, granularityBits: 9, bits: [5], ...bad }
      const image = buildBitmapImage({ ...SPEC, bitmaps: [...others, bitmap] })
      damage?.(image.bytes, image)
      const memory = load(image.bytes)
      t.match(memory.bitmaps[3]!.problem, problem)
      t.equal(memory.bitmaps[3]!.record, undefined)
      t.same(memory.warnings.length, 1)
      t.match(memory.warnings[0], /^bitmap "bad\\x0a" becomes inconsistent/)
      t.same(bitsOf(memory, 'fine'), [0, 9, 12287, 16383])
      t.equal(memory.areLost, false)
    })
  }
})

t.test('a bitmap with extra data that are no obstacle is kept', async t => {
  const bitmap = { flags: AUTO | 4, extra: Buffer.from('extra'), bits: [7] }
  t.same(bitsOf(load(buildBitmapImage(withBitmap(bitmap)).bytes), 'b'), [7])
})

t.test('a cluster that is free or shared is never written in place', async t => {
  const { bytes, tableAt } = buildBitmapImage(SPEC)
  const { bitmaps, warnings } = load(bytes, at => at !== Number(bytes.readBigUInt64BE(tableAt[0]!)))
  t.match(
    bitmaps.map(({ problem }) => problem),
    [/is free, or used elsewhere/, '', ''],
  )
  t.equal(warnings.length, 1)
})

t.test('a directory in a free cluster is no place to write to', async t => {
  const { bytes, directoryAt } = buildBitmapImage(SPEC)
  t.equal(load(bytes, at => at !== directoryAt).areLost, true)
})

t.test('a disabled bitmap that is damaged does not matter until the disk grows', async t => {
  const { bytes, tableAt } = buildBitmapImage(SPEC)
  bytes.writeBigUInt64BE(2n, tableAt[2]!)
  const { bitmaps, warnings } = load(bytes)
  t.match(bitmaps[2]!.problem, /entry 0/)
  t.same(warnings, [])
})

t.test('bits in memory are bounded', async t => {
  // 2^41 bytes are 2^32 sectors: 512 MiB of bits.
  const spec = withBitmap({ granularityBits: 9 }, 8 * M)
  const image = buildBitmapImage({
    ...spec,
    clusterBits: 16,
    bitmaps: [...spec.bitmaps, { name: 'coarse', flags: AUTO, granularityBits: 20, bits: [6] }],
    maxSizeBytes: 2 ** 41,
  })
  image.bytes.writeBigUInt64BE(2n ** 41n, 24)
  image.bytes.writeUInt32BE(4, image.entryAt[1]! + 8)
  const { bitmaps, warnings } = load(image.bytes)
  t.match(bitmaps[0]!.problem, /together take more than 268435456 bytes/)
  t.equal(bitmaps[1]!.problem, '')
  t.equal(warnings.length, 1)
})

t.test('all are lost where nothing can be said of them', async t => {
  const cases: { title: string; damage: (bytes: Buffer, image: BitmapImage) => void }[] = [
    { title: 'no extension', damage: b => b.writeUInt32BE(0x12345678, 112) },
    { title: 'a directory in the header', damage: b => b.writeBigUInt64BE(0n, 120 + 16) },
    {
      title: 'a directory that is not aligned',
      damage: (b, i) => b.writeBigUInt64BE(BigInt(i.directoryAt + 8), 120 + 16),
    },
    {
      title: 'a directory over the L1 table',
      damage: b => b.writeBigUInt64BE(b.readBigUInt64BE(40), 120 + 16),
    },
    { title: 'a directory beyond the end', damage: b => b.writeBigUInt64BE(1n << 50n, 120 + 16) },
    { title: 'a huge directory', damage: b => b.writeBigUInt64BE(1n << 52n, 120 + 8) },
    { title: 'more bitmaps than the directory has', damage: b => b.writeUInt32BE(5, 120) },
    { title: 'another type', damage: (b, i) => b.writeUInt8(2, i.entryAt[0]! + 16) },
    { title: 'a granularity of 2^40', damage: (b, i) => b.writeUInt8(40, i.entryAt[0]! + 17) },
    {
      title: 'a name that never ends',
      damage: (b, i) => b.writeUInt16BE(65535, i.entryAt[3]! + 18),
    },
  ]
  for (const { title, damage } of cases) {
    t.test(title, async t => {
      const image = buildBitmapImage(SPEC)
      damage(image.bytes, image)
      const { bitmaps, areLost, warnings } = load(image.bytes)
      t.same(bitmaps, [])
      t.equal(areLost, true)
      t.match(warnings, [/^the first write makes all bitmaps void: /])
    })
  }
})

function range(from: number, end: number): number[] {
  return Array.from({ length: end - from }, (_, i) => from + i)
}
