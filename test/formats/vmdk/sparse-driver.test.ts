/** Where the bytes of sparse extents are: every kind of grain, at every border, and what damage leaves. */
import { closeSync, fstatSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import zlib from 'node:zlib'
import t, { type Test } from 'tap'
import { ClusterCache } from '../../../src/cache/cluster-cache.js'
import { STATISTICS } from '../../../src/cache/statistics.js'
import { ImageError, SystemError } from '../../../src/errors.js'
import type { View } from '../../../src/formats/driver.js'
import { inflateWithoutLibrary } from '../../../src/formats/vmdk/grain.js'
import type { ReadTable } from '../../../src/formats/vmdk/parts.js'
import { SparseDriver } from '../../../src/formats/vmdk/sparse-driver.js'
import { readSparseHeader } from '../../../src/formats/vmdk/sparse-header.js'
import { FileStore, type Store } from '../../../src/io/store.js'
import { noise, prose } from '../../fixtures/model.js'
import {
  type BuiltExtent,
  buildExtent,
  descriptorText,
  type ExtentSpec,
  extentModel,
  type Grain,
  HEADER_AT,
  packed,
} from '../../fixtures/vmdk-builder.js'
import { firstDifference, readAll, readAt } from '../../support/image.js'
import { needs, run, tempFolder } from '../../support/run.js'
import { MemoryStore } from '../../support/stores.js'

const K = 1024
const SECTOR = 512
const G = 4 * K
const data = (bytes: number, seed: number): Grain => ({ kind: 'data', bytes: noise(bytes, seed) })
const ZERO: Grain = { kind: 'zero' }
const entry = (sector: number): Grain => ({ kind: 'entry', entry: sector })

/** Tables as the contract allows it at worst: one Buffer, overwritten by the next call. */
function readTableOf(store: Store): ReadTable {
  const only = Buffer.alloc(4096)
  return (at, length) => {
    if (at % SECTOR || length % SECTOR || length <= 0 || length > 4096) {
      throw new RangeError(`a table of ${length} bytes at ${at}`)
    }
    only.fill(0xee)
    if (store.read(only, 0, length, at) < length) {
      throw new ImageError('CORRUPT', `a table at ${at} lies beyond the end of the file`)
    }
    return only.subarray(0, length)
  }
}

function driverOf(store: Store, cacheBytes = 2 ** 20): SparseDriver {
  const grains = new ClusterCache(cacheBytes, new Float64Array(STATISTICS))
  const parts = { store, storeId: 3, readTable: readTableOf(store), grains }
  return new SparseDriver(parts, readSparseHeader(store))
}

const bytesView = (bytes: Buffer, parent?: Buffer): View => ({
  driver: driverOf(new MemoryStore('x.vmdk', bytes)),
  parent: parent && { driver: bytesDriver(parent), parent: undefined },
})

const bytesDriver = (bytes: Buffer): View['driver'] => {
  const store = new MemoryStore('parent', bytes)
  const lookup = (at: number, length: number) => ({ kind: 'data', length, store, at }) as const
  return { sizeBytes: bytes.length, unitBytes: 1, lookup }
}

function fileView(t: Test, path: string): View {
  const fd = openSync(path, 'r')
  t.teardown(() => closeSync(fd))
  return { driver: driverOf(new FileStore(path, fd, fstatSync(fd).size)), parent: undefined }
}

const mixed = (grainBytes: number, first = 0): [number, Grain][] => [
  [first + 1, data(grainBytes, 1)],
  [first + 2, data(grainBytes, 2)],
  [first + 3, ZERO],
  [first + 4, ZERO],
  [first + 7, data(grainBytes, 3)],
  [first + 6, data(grainBytes, 4)],
  [first + 8, data(grainBytes, 5)],
]
const packedMix = (grainBytes: number): [number, Grain][] => [
  [0, packed(prose(grainBytes, 1))],
  [1, packed(noise(grainBytes, 2))],
  [9, packed(prose(grainBytes, 3))],
  [8, packed(noise(grainBytes, 4))],
  [4, packed(prose(grainBytes, 5))],
]
/** A disk that ends within its eleventh grain. */
const SHORT = 10 * 8 + 3

const disks: { title: string; spec: ExtentSpec; parent?: Buffer }[] = [
  {
    title: 'plain and zeroed grains',
    spec: {
      capacitySectors: 20 * 8 + 5,
      grainSectors: 8,
      tableEntries: 8,
      hasZeroGrains: true,
      grains: new Map([...mixed(G), [15, data(G, 8)], [16, data(G, 9)], [20, data(G, 10)]]),
    },
  },
  {
    title: 'grains of a sector in tables of one entry',
    spec: {
      capacitySectors: 30,
      grainSectors: 1,
      tableEntries: 1,
      hasZeroGrains: true,
      grains: new Map(mixed(SECTOR)),
    },
  },
  {
    title: 'usual grains in usual tables',
    spec: {
      capacitySectors: 600 * 128 + 1,
      grains: new Map([...mixed(64 * K, 1), [511, data(64 * K, 6)], [512, data(64 * K, 7)]]),
      hasZeroGrains: true,
    },
  },
  {
    title: 'tables left out',
    spec: {
      capacitySectors: 100 * 8,
      grainSectors: 8,
      tableEntries: 2,
      leavesOutTables: true,
      hasRedundant: false,
      grains: new Map([
        [3, data(G, 1)],
        [70, data(G, 2)],
      ]),
    },
  },
  {
    title: 'compressed grains',
    spec: {
      capacitySectors: SHORT,
      grainSectors: 8,
      tableEntries: 4,
      isCompressed: true,
      hasZeroGrains: true,
      grains: new Map([
        ...packedMix(G),
        [5, ZERO],
        // What the disk has of it, as QEMU and VMware write it.
        [10, packed(prose(3 * SECTOR, 6))],
      ]),
    },
  },
  {
    title: 'a stream with its tables at the end',
    spec: {
      capacitySectors: 300 * 16 + 8,
      grainSectors: 16,
      tableEntries: 16,
      isCompressed: true,
      isStream: true,
      leavesOutTables: true,
      descriptor: 'a text',
      grains: new Map([...packedMix(8 * K), [300, packed(prose(8 * K, 6))]]),
    },
  },
  {
    title: 'usual compressed grains',
    spec: {
      capacitySectors: SHORT * 128,
      isCompressed: true,
      grains: new Map(packedMix(64 * K)),
    },
  },
]
for (const { title, spec } of disks) {
  for (const hasParent of [false, true]) {
    t.test(`${title}${hasParent ? ' over a parent' : ''}`, async t => {
      const sizeBytes = spec.capacitySectors * SECTOR
      const parent = hasParent ? noise(sizeBytes - 1000, 99) : undefined
      const disk = extentModel(spec, parent)
      const view = bytesView(buildExtent(spec).bytes, parent)
      t.equal(view.driver.sizeBytes, sizeBytes)
      t.equal(view.driver.unitBytes, (spec.grainSectors ?? 128) * SECTOR)
      t.equal(firstDifference(readAll(view), disk), -1, 'all of it')
      t.same(wrongReads(view, disk), [])
    })
  }
}

/** Reads around the borders of up to 64 grains. */
function wrongReads(view: View, disk: Buffer): string[] {
  const wrong: string[] = []
  const step = view.driver.unitBytes
  const stride = Math.ceil(disk.length / step / 64) * step
  for (let border = 0; border <= disk.length; border += stride) {
    for (const offset of [border - 1, border, border + 1]) {
      for (const length of [1, 511, 513, step - 1, step, step + 1, 3 * step]) {
        if (offset < 0 || offset >= disk.length) continue
        const expected = Buffer.alloc(length)
        disk.copy(expected, 0, offset, offset + length)
        if (!readAt(view, offset, length).equals(expected)) wrong.push(`${length} at ${offset}`)
      }
    }
  }
  return wrong
}

t.test('neighbours are one extent, as far as their table goes', async t => {
  const spec: ExtentSpec = {
    capacitySectors: 4000 * 8,
    grainSectors: 8,
    tableEntries: 2,
    hasZeroGrains: true,
    leavesOutTables: true,
    grains: new Map([
      [0, data(G, 1)],
      [1, data(G, 2)],
      [2, data(G, 3)],
      [4, ZERO],
      [5, ZERO],
      [7, data(G, 5)],
      [3000, data(G, 6)],
    ]),
  }
  const built = buildExtent(spec)
  const { driver } = bytesView(built.bytes)
  const store = { path: 'x.vmdk' }
  const look = (offset: number, length = 2 ** 30) =>
    driver.lookup(offset, Math.min(length, driver.sizeBytes - offset))
  const at = (grain: number) => built.placeOf(grain)
  t.match(look(100), { kind: 'data', length: 2 * G - 100, at: at(0) + 100, store })
  t.match(look(2 * G), { kind: 'data', length: G, at: at(2) }, 'the next table')
  t.match(look(3 * G), { kind: 'parent', length: G })
  t.match(look(4 * G + 1), { kind: 'zero', length: 2 * G - 1 })
  t.match(look(4 * G + 1, 5000), { kind: 'zero', length: 5000 })
  t.match(look(6 * G), { kind: 'parent', length: G })
  t.match(look(8 * G + 7), { kind: 'parent', length: (2048 - 8) * G - 7 }, 'a slice of tables')
  t.match(look(8 * G + 7, 3), { kind: 'parent', length: 3 })
  t.match(look(2048 * G), { kind: 'parent', length: (3000 - 2048) * G })
  t.match(look(3002 * G), { kind: 'parent', length: (4000 - 3002) * G })
})

t.test('a grain in reverse order is no neighbour', async t => {
  const grains = new Map([1, 0].map(i => [i, data(G, i)]))
  const { driver } = bytesView(buildExtent({ ...SMALL, grains }).bytes)
  t.match(driver.lookup(0, 2 * G), { kind: 'data', length: G })
})

t.test('where compressed grains are, for decompressing elsewhere', async t => {
  const spec: ExtentSpec = {
    capacitySectors: 8 * 8,
    grainSectors: 8,
    tableEntries: 4,
    isCompressed: true,
    grains: new Map(packedMix(G).filter(([grain]) => grain < 8)),
  }
  const built = buildExtent(spec)
  const { driver } = bytesView(built.bytes)
  t.match(driver.lookup(10, 6 * G), {
    kind: 'packed',
    length: G - 10,
    skip: 10,
    wholeBytes: G,
    job: {
      format: 'vmdk',
      storeId: 3,
      numbers: [built.placeOf(0), built.placeOf(1) - built.placeOf(0), 0, G],
    },
  })
  const last = driver.lookup(G, G)
  t.match(last, { job: { numbers: [built.placeOf(1), G + SECTOR] } }, 'nothing is next')
})

/** Four grains of 4 KiB in one table, and in the redundant one. */
const SMALL: ExtentSpec = { capacitySectors: 4 * 8, grainSectors: 8, tableEntries: 4 }
const BEYOND = 0xffff_fff0

t.test('entries that cannot be', async t => {
  const built = (sector: number, more: Partial<ExtentSpec> = {}) =>
    buildExtent({
      ...SMALL,
      descriptor: 'a text',
      grains: new Map([
        [0, data(G, 1)],
        [1, data(G, 2)],
        [2, entry(sector)],
        [3, data(G, 4)],
      ]),
      ...more,
    })
  const { directoryAt, redundantDirectoryAt, bytes } = built(0)
  const cases: [string, number, RegExp][] = [
    ['sector 1 without zeroed grains', 1, /a grain at 512, where tables are/],
    ['the descriptor', 20, /a grain at 10240, where tables are/],
    ['the directory', directoryAt / SECTOR, /where tables are/],
    ['the redundant directory', redundantDirectoryAt / SECTOR, /where tables are/],
    ['before the redundant directory', redundantDirectoryAt / SECTOR - 7, /where tables are/],
    ['the end of the file', bytes.length / SECTOR, /beyond the end of the file/],
    ['far beyond', BEYOND, /a grain at 2199023247360, beyond the end of the file/],
  ]
  for (const [title, sector, message] of cases) {
    const view = bytesView(built(sector).bytes)
    const error = { code: 'CORRUPT', message, context: { path: 'x.vmdk', offset: 2 * G } }
    t.throws(() => readAt(view, 2 * G, G), error, title)
    t.throws(() => readAt(view, 0, 4 * G), error, `${title}, in a longer read`)
    t.ok(readAt(view, 0, 2 * G).equals(Buffer.concat([noise(G, 1), noise(G, 2)])), 'before it')
    t.ok(readAt(view, 3 * G, G).equals(noise(G, 4)), 'after it')
  }
  t.ok(readAt(bytesView(built(1, { hasZeroGrains: true }).bytes), 2 * G, G).equals(Buffer.alloc(G)))
})

t.test('the redundant tables stand in for damaged entries', async t => {
  const grains = new Map<number, Grain>([
    [0, data(G, 1)],
    [1, data(G, 2)],
    [2, ZERO],
    [5, data(G, 6)],
  ])
  const spec: ExtentSpec = { ...SMALL, capacitySectors: 16 * 8, hasZeroGrains: true, grains }
  const disk = extentModel(spec)
  const built = buildExtent(spec)
  for (const grain of [1, 2, 5]) built.bytes.writeUInt32LE(BEYOND, built.entryAt(grain))
  t.same(wrongReads(bytesView(built.bytes), disk), [], 'of grains')
  // Both directories have a bad entry, so that neither is taken alone.
  built.bytes.writeUInt32LE(BEYOND, built.directoryAt)
  built.bytes.writeUInt32LE(BEYOND, built.redundantDirectoryAt + 8)
  t.same(wrongReads(bytesView(built.bytes), disk), [], 'of tables')
  built.bytes.writeUInt32LE(BEYOND, built.directoryAt + 8)
  const view = bytesView(built.bytes)
  t.throws(() => readAt(view, 8 * G, G), {
    code: 'CORRUPT',
    message: /the grain directory's entry 2 names a table at 2199023247360, which cannot be/,
    context: { offset: 8 * G },
  })

  const contrary = buildExtent(spec)
  contrary.bytes.writeUInt32LE(BEYOND, contrary.entryAt(1))
  contrary.bytes.writeUInt32LE(0, contrary.redundantEntryAt(1))
  t.throws(() => readAt(bytesView(contrary.bytes), G, G), { code: 'CORRUPT' }, 'not for nothing')
  const unused = buildExtent({ ...spec, hasRedundant: false })
  unused.bytes.writeUInt32LE(BEYOND, unused.entryAt(1))
  t.throws(() => readAt(bytesView(unused.bytes), G, G), { code: 'CORRUPT' }, 'there is none')
})

t.test('the redundant directory instead of the first', async t => {
  const spec: ExtentSpec = {
    capacitySectors: 20 * 8,
    grainSectors: 8,
    tableEntries: 4,
    grains: new Map(Array.from({ length: 20 }, (_, i) => [i, data(G, i)])),
  }
  const built = buildExtent(spec)
  // The first one's entries and tables are nonsense but for one.
  built.bytes.writeUInt32LE(BEYOND, built.directoryAt + 4)
  built.bytes.writeUInt32LE(built.tableAt(0) / SECTOR, built.directoryAt + 8)
  t.same(wrongReads(bytesView(built.bytes), extentModel(spec)), [])
})

t.test('a redundant entry of a compressed grain', async t => {
  const spec: ExtentSpec = {
    ...SMALL,
    isCompressed: true,
    grains: new Map([[0, packed(noise(G, 1))]]),
  }
  const built = buildExtent(spec)
  built.bytes.writeUInt32LE(BEYOND, built.entryAt(0))
  t.ok(readAll(bytesView(built.bytes)).equals(extentModel(spec)))
})

t.test('a file that ends early', async t => {
  const spec: ExtentSpec = { ...SMALL, grains: new Map([0, 1].map(i => [i, data(G, i)])) }
  const { bytes, placeOf } = buildExtent(spec)
  const view = bytesView(bytes.subarray(0, placeOf(1)))
  t.ok(readAt(view, 0, G).equals(noise(G, 0)))
  t.throws(() => readAt(view, G, 1), { code: 'CORRUPT', message: /beyond the end of the file/ })
})

t.test('compressed grains that are damaged', async t => {
  const content = noise(G, 2)
  const stream = zlib.deflateSync(content)
  const flipped = Buffer.from(stream)
  flipped[1000]! ^= 1
  const cases: [string, Grain, RegExp][] = [
    [
      'another grain',
      packed(content, { sector: 16n }),
      /the grain of sector 16 at \d+, not that of sector 8$/,
    ],
    ['a sector over 2^53', packed(content, { sector: 2n ** 64n - 1n }), /not that of sector 8$/],
    ['another marker', packed(content, { packedBytes: 0 }), /there is no grain at \d+/],
    ['too long', packed(content, { packedBytes: 2 * G + 1 }), /has 8193 bytes/],
    ['much too long', packed(content, { packedBytes: 2 ** 32 - 1 }), /has 4294967295 bytes/],
    ['over the end', packed(content, { packedBytes: 2 * G }), /cut off by the end of the file/],
    ['a bad bit', packed(content, { stream: flipped }), /damaged or too short/],
    [
      'a bad sum',
      packed(content, { stream: Buffer.concat([stream.subarray(0, -1), Buffer.from([1])]) }),
      /damaged/,
    ],
    [
      'half a stream',
      packed(content, { stream: stream.subarray(0, 2000) }),
      /damaged or too short/,
    ],
    [
      'no header',
      packed(content, { stream: zlib.deflateRawSync(content) }),
      /damaged or too short/,
    ],
    ['less than a grain', packed(noise(G - 1, 2)), /damaged or too short/],
    ['more than a grain', packed(noise(G + 1, 2)), /damaged or too short/],
    [
      'far more',
      packed(content, { stream: zlib.deflateSync(Buffer.alloc(4 * 2 ** 20)) }),
      /damaged or too short/,
    ],
  ]
  for (const [title, grain, message] of cases) {
    // The last in its file, so that the bytes after it are missing.
    const grains = new Map([
      [0, packed(prose(G, 1))],
      [1, grain],
    ])
    const { bytes } = buildExtent({ ...SMALL, isCompressed: true, grains })
    const view = bytesView(bytes)
    const error = { code: 'CORRUPT', message, context: { path: 'x.vmdk' } }
    t.throws(() => readAt(view, G, G), error, title)
    t.throws(() => readAt(view, G + 7, 100), { ...error, context: { offset: G + 7 } }, title)
    t.ok(readAt(view, 0, G).equals(prose(G, 1)), 'the grain before')
  }
})

t.test('a stream may be followed by anything, and its last grain be short', async t => {
  const content = prose(G, 3)
  const stream = Buffer.concat([zlib.deflateSync(content), noise(700, 1)])
  const last = prose(2 * SECTOR, 4)
  const grains = new Map([
    [0, packed(content, { stream })],
    [3, packed(last)],
  ])
  const spec: ExtentSpec = { ...SMALL, capacitySectors: 3 * 8 + 2, isCompressed: true, grains }
  t.ok(readAll(bytesView(buildExtent(spec).bytes)).equals(extentModel(spec)))
  const whole = bytesView(buildExtent(spec).bytes).driver.lookup(3 * G, 2 * SECTOR)
  t.equal(whole.kind, 'packed')
  if (whole.kind !== 'packed') return
  const zeros = Buffer.alloc(G - last.length)
  const target = Buffer.alloc(G, 0xee)
  whole.unpackInto(target)
  t.ok(target.equals(Buffer.concat([last, zeros])), 'zeros follow')
  t.ok(whole.unpack().equals(target), 'in the cache, too')
})

/** A zlib stream of blocks of 8 bytes that are only stored (RFC 1951, 3.2.4). */
function storedStream(content: Buffer): Buffer {
  const blocks: Buffer[] = []
  for (let at = 0; at < content.length; at += 8) {
    const isLast = at + 8 >= content.length ? 1 : 0
    blocks.push(Buffer.from([isLast, 8, 0, 0xf7, 0xff]), content.subarray(at, at + 8))
  }
  const sum = zlib.deflateSync(content).subarray(-4)
  return Buffer.concat([Buffer.from([0x78, 0x01]), ...blocks, sum])
}

t.test('a stream that is longer than its grain by far', async t => {
  const grains = [0, 1, 3].map((grain): [number, Grain] => {
    const content = noise(G, grain)
    return [grain, packed(content, { stream: storedStream(content) })]
  })
  const spec: ExtentSpec = { ...SMALL, isCompressed: true, grains: new Map(grains) }
  t.same(wrongReads(bytesView(buildExtent(spec).bytes), extentModel(spec)), [])
})

t.test('two entries of one compressed grain', async t => {
  const { bytes, entryAt } = buildExtent({
    ...SMALL,
    isCompressed: true,
    grains: new Map([[0, packed(prose(G, 1))]]),
  })
  bytes.writeUInt32LE(bytes.readUInt32LE(entryAt(0)), entryAt(2))
  const view = bytesView(bytes)
  t.ok(readAt(view, 1, 100).equals(prose(G, 1).subarray(1, 101)), 'it is kept')
  t.throws(() => readAt(view, 2 * G + 1, 100), { code: 'CORRUPT' })
  t.throws(() => readAt(view, 2 * G, G), { code: 'CORRUPT' })
})

t.test('what is kept is not read again', async t => {
  const spec: ExtentSpec = {
    ...SMALL,
    isCompressed: true,
    grains: new Map(packedMix(G).slice(0, 2)),
  }
  const { bytes, placeOf } = buildExtent(spec)
  const store = new MemoryStore('x.vmdk', bytes)
  const view: View = { driver: driverOf(store), parent: undefined }
  const disk = extentModel(spec)
  readAt(view, 1, 1)
  store.punch(placeOf(0), G)
  t.ok(readAt(view, 5, 1000).equals(disk.subarray(5, 1005)))
  t.ok(readAt(view, 0, G).equals(disk.subarray(0, G)), 'nor as a whole')
})

t.test('without the library', async t => {
  const content = prose(G, 1)
  const target = Buffer.alloc(G, 0xee)
  const inflated = (stream: Buffer) => inflateWithoutLibrary(stream, target)
  t.equal(inflated(zlib.deflateSync(content)), G)
  t.ok(target.equals(content))
  t.equal(inflated(Buffer.concat([zlib.deflateSync(noise(100, 2)), noise(50, 3)])), 100)
  t.ok(target.subarray(0, 100).equals(noise(100, 2)))
  t.equal(inflated(zlib.deflateSync(noise(G + 1, 2))), -1)
  t.equal(inflated(zlib.deflateSync(content).subarray(0, -1)), -1)
  t.equal(inflated(zlib.deflateRawSync(content)), -1)
})

t.test('any bytes at all', async t => {
  const rolls = noise(64 * K, 78)
  let roll = 0
  const next = () => rolls[roll++ % rolls.length] as number
  const small = disks.filter(({ spec }) => (spec.grainSectors ?? 128) < 128)
  const extents = small.map(({ spec }) => buildExtent(spec))
  let damages = 0
  for (let round = 0; round < 600; round++) {
    const { bytes, directoryAt, entryAt } = extents[round % extents.length] as BuiltExtent
    const copy = Buffer.from(bytes)
    for (let changes = 1 + (next() % 4); changes > 0; changes--) {
      const at = [next() % 80, directoryAt + (next() % 16), entryAt(next() % 8), next() * 97]
      copy[(at[next() % 4] as number) % copy.length] = next()
    }
    try {
      const view = bytesView(copy)
      const { sizeBytes } = view.driver
      for (let offset = 0; offset < Math.min(sizeBytes, 2 ** 20); offset += 16 * K) {
        try {
          readAt(view, offset, Math.min(16 * K, sizeBytes - offset))
        } catch (error) {
          damages++
          if (!(error instanceof ImageError || error instanceof SystemError)) throw error
        }
      }
    } catch (error) {
      if (!(error instanceof ImageError || error instanceof SystemError)) throw error
    }
  }
  t.ok(damages > 50, `${damages} reads met damage`)
})

/** Data, holes and zeros; not a whole number of grains. */
function rawDisk(): Buffer {
  const disk = Buffer.alloc(5 * 2 ** 20 + 3 * SECTOR)
  noise(300 * K, 1).copy(disk, 0)
  prose(900 * K, 2).copy(disk, 700 * K)
  noise(1000, 3).copy(disk, 4 * 2 ** 20 + 512)
  noise(SECTOR, 4).copy(disk, disk.length - SECTOR)
  return disk
}

const options = [
  'subformat=monolithicSparse',
  'subformat=monolithicSparse,zeroed_grain=on',
  'subformat=monolithicSparse,compat6=on',
  'subformat=streamOptimized',
  'subformat=streamOptimized,compat6=on',
]
for (const option of options) {
  t.test(`what qemu-img writes with ${option}`, needs('qemu-img', 'qemu-io'), async t => {
    const folder = tempFolder(t)
    const [raw, image] = [join(folder, 'disk.raw'), join(folder, 'disk.vmdk')]
    const disk = rawDisk()
    writeFileSync(raw, disk)
    const convert = ['convert', '-f', 'raw', '-O', 'vmdk', '-o', option, raw, image]
    await run('qemu-img', convert)
    t.equal(firstDifference(readAll(fileView(t, image)), disk), -1)
    if (option.includes('streamOptimized')) return
    const change = (command: string) => run('qemu-io', ['-f', 'vmdk', '-c', command, image])
    await change('write -P 0x5a 1000k 300k')
    disk.fill(0x5a, 1000 * K, 1300 * K)
    if (option.includes('zeroed_grain')) {
      await change('write -z 64k 128k')
      disk.fill(0, 64 * K, 192 * K)
    }
    const view = fileView(t, image)
    t.equal(firstDifference(readAll(view), disk), -1, 'after writing')
    const isZero = option.includes('zeroed_grain')
    t.equal(view.driver.lookup(64 * K, K).kind, isZero ? 'zero' : 'data')
  })
}

t.test('an empty image of qemu-img', needs('qemu-img'), async t => {
  const image = join(tempFolder(t), 'disk.vmdk')
  await run('qemu-img', ['create', '-q', '-f', 'vmdk', image, '1T'])
  const { driver } = fileView(t, image)
  t.equal(driver.sizeBytes, 2 ** 40)
  t.same(driver.lookup(2 ** 39 + 5, 2 ** 30), { kind: 'parent', length: 32 * 2 ** 20 - 5 })
})

for (const { title, spec } of disks) {
  t.test(`qemu-img reads ${title}`, needs('qemu-img'), async t => {
    const folder = tempFolder(t)
    const [raw, image] = [join(folder, 'disk.raw'), join(folder, 'disk.vmdk')]
    const type = spec.isCompressed ? 'streamOptimized' : 'monolithicSparse'
    const descriptor = descriptorText(type, spec.capacitySectors, 'disk.vmdk')
    writeFileSync(image, buildExtent({ ...spec, descriptor }).bytes)
    await run('qemu-img', ['convert', '-f', 'vmdk', '-O', 'raw', image, raw])
    const theirs = readFileSync(raw)
    t.equal(firstDifference(theirs, extentModel(spec)), -1, 'as the model says')
    t.equal(firstDifference(readAll(fileView(t, image)), theirs), -1, 'as we do')
  })
}

t.test('the header counts at the end of a stream', async t => {
  const { spec } = disks.find(({ spec }) => spec.isStream) as (typeof disks)[0]
  const built = buildExtent(spec)
  // The first one may say of the disk what it likes, once it points at the footer.
  built.bytes.writeBigUInt64LE(1n, HEADER_AT.capacity)
  built.bytes.writeBigUInt64LE(1n, HEADER_AT.grain)
  t.ok(readAll(bytesView(built.bytes)).equals(extentModel(spec)))
})
