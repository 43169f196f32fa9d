/** COWD extents: the header field by field, every byte, and what damage leaves readable. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { oneLine } from '../../../src/errors.js'
import { CowdDriver, readCowdHeader } from '../../../src/formats/vmdk/cowd.js'
import type { Store } from '../../../src/io/store.js'
import { buildCowd, type CowdSpec } from '../../fixtures/cowd-builder.js'
import { noise } from '../../fixtures/model.js'
import { readAll, readAt } from '../../support/image.js'
import { holds } from '../../support/property.js'
import { needs, tempFolder } from '../../support/run.js'
import { MemoryStore } from '../../support/stores.js'
import {
  convert,
  exercise,
  extentsOf,
  harshParts,
  overRaw,
  type Poke,
  poked,
  rawByQemu,
  thrownBy,
  wrongReads,
} from './grains.js'
import { cpuMs } from '../../support/cpu.js'

const K = 1024
const GRAIN_TABLE_SECTORS = 4096

const driverOf = (store: Store) => new CowdDriver(harshParts(store), readCowdHeader(store))
const stored = (bytes: Buffer) => new MemoryStore('disk-delta.vmdk', bytes)

/** What the disk holds, by the grains it was built of. */
function modelOf({ sectors, grainSectors = 1, grains }: CowdSpec, parent?: Buffer): Buffer {
  const disk = Buffer.alloc(sectors * 512)
  parent?.copy(disk)
  for (const [grain, bytes] of grains ?? []) {
    const at = grain * grainSectors * 512
    disk.fill(0, at, Math.min(at + grainSectors * 512, disk.length))
    bytes.copy(disk, at)
  }
  return disk
}

const grainsOf = (indexes: readonly number[], bytes: number) =>
  new Map(indexes.map(i => [i, noise(bytes, i + 1)]))
const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i)

const disks: { title: string; spec: CowdSpec; parent?: Buffer; step: number }[] = [
  {
    title: 'grains of one sector over a parent, the last table in part',
    spec: {
      sectors: 3 * GRAIN_TABLE_SECTORS + 5,
      grains: grainsOf(
        [0, 1, 2, 9, 8, 7, 1023, 1024, 1025, ...range(2040, 3080), 4095, 4096, 12288, 12292],
        512,
      ),
    },
    parent: noise(3 * GRAIN_TABLE_SECTORS * 512 + 100, 99),
    step: 512 * K,
  },
  {
    title: 'grains of 8 sectors, a capacity that is no multiple of them, nothing below',
    spec: {
      sectors: 8 * GRAIN_TABLE_SECTORS + 13,
      grainSectors: 8,
      gapSectors: 3,
      grains: grainsOf([4097, 3, 1, 2, 4096, 4095], 4 * K),
      emptyTables: [],
    },
    step: 4096 * K,
  },
  {
    title: 'grains of 128 sectors, the file ends within the last one, as its header says',
    spec: {
      sectors: 1000,
      grainSectors: 128,
      gapSectors: 1,
      freeSector: 301,
      grains: new Map([
        [6, noise(64 * K, 1)],
        [7, noise(64 * K, 2)],
        [2, noise(10 * 512, 3)],
      ]),
    },
    parent: noise(400 * K, 98),
    step: 64 * K,
  },
]
for (const { title, spec, parent, step } of disks) {
  t.test(title, async t => {
    const driver = driverOf(stored(buildCowd(spec).bytes))
    t.equal(driver.sizeBytes, spec.sectors * 512)
    t.equal(driver.unitBytes, (spec.grainSectors ?? 1) * 512)
    t.same(wrongReads(overRaw(driver, parent), modelOf(spec, parent), step), [])
  })
  t.test(`${title}: qemu-img agrees`, needs('qemu-img'), async t => {
    const flat = parent && Buffer.concat([parent, Buffer.alloc(-parent.length & 511)])
    const { bytes } = buildCowd(spec)
    const link = { type: 'VMFSSPARSE', bytes } as const
    const theirs = await rawByQemu(tempFolder(t), link, spec.sectors, flat)
    t.ok(theirs.equals(readAll(overRaw(driverOf(stored(bytes)), flat))))
  })
}

t.test('2 TiB: the last entry of a directory of 4 MiB', async t => {
  const sectors = 2 ** 32 - 1
  const spec = { sectors, grains: grainsOf([0, sectors - 1], 512) }
  const built = buildCowd(spec)
  const parts = harshParts(stored(built.bytes))
  const driver = new CowdDriver(parts, readCowdHeader(parts.store))
  t.equal(driver.sizeBytes, sectors * 512)
  const view = overRaw(driver)
  t.ok(readAt(view, 0, 1024).equals(Buffer.concat([noise(512, 1), Buffer.alloc(512)])))
  const end = (sectors - 1) * 512
  t.ok(
    readAt(view, end - 512, 1024).equals(Buffer.concat([Buffer.alloc(512), noise(512, sectors)])),
  )
  parts.reads = 0
  const extents = extentsOf(driver, 0, driver.sizeBytes)
  t.ok(extents.length < 1100, `${extents.length} extents: a slice of the directory is one`)
  t.ok(parts.reads < 1200, `${parts.reads} slices read`)
})

t.test('neighbours are one extent', async t => {
  const spec: CowdSpec = {
    sectors: 4 * GRAIN_TABLE_SECTORS,
    grains: grainsOf([...range(0, 2000), 2001, 2000, ...range(2002, 4096), 8192], 512),
  }
  const built = buildCowd(spec)
  const driver = driverOf(stored(built.bytes))
  const first = built.placeOf(0)
  t.same(extentsOf(driver, 0, driver.sizeBytes), [
    `data ${2000 * 512} at ${first}`,
    `data 512 at ${built.placeOf(2000)}`,
    `data 512 at ${built.placeOf(2001)}`,
    `data ${2094 * 512} at ${built.placeOf(2002)}`,
    `parent ${4096 * 512}`,
    `data 512 at ${built.placeOf(8192)}`,
    `parent ${4095 * 512}`,
    `parent ${4096 * 512}`,
  ])
  t.same(extentsOf(driver, 700, 1000), [`data 1000 at ${first + 700}`])
  t.same(extentsOf(driver, 4096 * 512 + 1, 10), ['parent 10'])
})

t.test('a request of thousands of grains is quick', async t => {
  const grains = new Map(range(0, 4096).map(i => [i, noise(512, 1)]))
  const driver = driverOf(stored(buildCowd({ sectors: 4096, grains }).bytes))
  for (let i = 0; i < 200; i++) driver.lookup(0, driver.sizeBytes)
  const started = cpuMs()
  for (let i = 0; i < 200; i++) driver.lookup(0, driver.sizeBytes)
  const each = (cpuMs() - started) / 200
  t.equal(driver.lookup(0, driver.sizeBytes).length, 4096 * 512)
  t.comment(`${(each * 1000).toFixed(0)} µs for 4096 grains`)
  t.ok(each < 5, `${each} ms`)
})

t.test('a file that ends within a grain that begins at any sector', async t => {
  const spec: CowdSpec = {
    sectors: 64,
    grainSectors: 8,
    gapSectors: 5,
    grains: new Map([
      [0, noise(4 * K, 1)],
      [1, noise(1024, 2)],
    ]),
  }
  const { bytes, placeOf } = buildCowd(spec)
  const whole = bytes.length
  const driver = driverOf(stored(poked(bytes, [[28, 4, whole / 512]])))
  t.same(extentsOf(driver, 0, 8 * K + 512), [
    `data ${5 * K} at ${placeOf(0)}`,
    `zero ${3 * K}`,
    'parent 512',
  ])
  t.same(extentsOf(driver, 6 * K, 10), ['zero 10'])

  const missing = /grain's bytes at \d+ lie beyond the end of the file/
  const cut = driverOf(stored(bytes))
  t.same(extentsOf(cut, 0, 5 * K), [`data ${5 * K} at ${placeOf(0)}`])
  t.match(thrownBy(() => cut.lookup(5 * K, 10)).message, missing, 'its header says more')
  const inSector = driverOf(stored(poked(bytes, [[28, 4, whole / 512]]).subarray(0, whole - 100)))
  const rest = 5 * K - 100
  t.same(extentsOf(inSector, 0, rest), [`data ${rest} at ${placeOf(0)}`])
  t.match(thrownBy(() => inSector.lookup(rest, 10)).message, missing, 'within a sector')
})

const HONEST: CowdSpec = {
  sectors: 2 * GRAIN_TABLE_SECTORS,
  name: 'a disk',
  description: 'of a test',
  grains: grainsOf([0, 1, 5000], 512),
}

t.test('the header as it is read', async t => {
  const built = buildCowd(HONEST)
  t.same(readCowdHeader(stored(built.bytes)), {
    capacityBytes: 4096 * K,
    grainBytes: 512,
    flags: 3,
    directoryOffset: 2048,
    directoryEntries: 2,
    freeOffset: built.bytes.length,
    parent: undefined,
    generation: 7,
    name: 'a disk',
    description: 'of a test',
    isUnclean: false,
    warnings: [],
  })
  const parent = { name: 'base.vmdk', generation: 5 }
  const child = readCowdHeader(stored(buildCowd({ ...HONEST, parent }).bytes))
  t.same(child.parent, parent)
  const long = buildCowd({ ...HONEST, parent: { name: 'é'.repeat(600), generation: 1 } }).bytes
  t.equal(readCowdHeader(stored(long)).parent?.name, 'é'.repeat(512), 'a name without its NUL')
  for (const grainSectors of [1, 2, 4, 8, 16, 32, 64, 128]) {
    const header = readCowdHeader(stored(buildCowd({ sectors: 300, grainSectors }).bytes))
    t.equal(header.grainBytes, grainSectors * 512)
  }
  t.equal(readCowdHeader(stored(buildCowd({ sectors: 0 }).bytes)).capacityBytes, 0)
  t.equal(structuredClone(child).parent?.name, 'base.vmdk')
})

const warned: { title: string; pokes: Poke[]; warnings: RegExp[] }[] = [
  { title: 'unclean', pokes: [[1648, 4, 1]], warnings: [/not closed cleanly/] },
  { title: 'inconsistent', pokes: [[8, 4, 7]], warnings: [/marked inconsistent/] },
  {
    title: 'shorter than it was',
    pokes: [[28, 4, 1000]],
    warnings: [/last \d+ bytes are missing/],
  },
]
for (const { title, pokes, warnings } of warned) {
  t.test(`a warning: ${title}`, async t => {
    const header = readCowdHeader(stored(poked(buildCowd(HONEST).bytes, pokes)))
    t.equal(header.warnings.length, warnings.length)
    warnings.forEach((pattern, i) => void t.match(header.warnings[i], pattern))
  })
}

const refused: { title: string; pokes: Poke[]; code: string; message: RegExp }[] = [
  { title: 'the magic', pokes: [[0, 1, 0x4b]], code: 'NOT_AN_IMAGE', message: /not "COWD"/ },
  { title: 'version 2', pokes: [[4, 4, 2]], code: 'UNSUPPORTED', message: /COWD version 2/ },
  ...[0, 3, 129, 256, 2 ** 31, 2 ** 32 - 1].map(grain => ({
    title: `grains of ${grain} sectors`,
    pokes: [[16, 4, grain]] satisfies Poke[],
    code: 'CORRUPT',
    message: new RegExp(`grains of ${grain} sectors`),
  })),
  {
    title: 'a capacity that the directory does not cover',
    pokes: [[12, 4, 2 * 4096 + 1]],
    code: 'CORRUPT',
    message: /2 entries and the disk needs 3/,
  },
  {
    title: 'a directory over the header',
    pokes: [[20, 4, 3]],
    code: 'CORRUPT',
    message: /directory at 1536 lies over the header/,
  },
  {
    title: 'a directory at 0',
    pokes: [[20, 4, 0]],
    code: 'CORRUPT',
    message: /directory at 0 lies over the header/,
  },
  {
    title: 'a directory beyond the end',
    pokes: [[20, 4, 2 ** 32 - 1]],
    code: 'CORRUPT',
    message: /directory at 2199023255040 lies beyond the end of the file/,
  },
  {
    title: 'a directory of one entry too few',
    pokes: [[24, 4, 1]],
    code: 'CORRUPT',
    message: /1 entries and the disk needs 2/,
  },
  {
    title: 'a directory that reaches beyond the end',
    pokes: [[24, 4, 2 ** 20]],
    code: 'CORRUPT',
    message: /beyond the end of the file/,
  },
  {
    title: 'an unneeded directory',
    pokes: [[24, 4, 2 ** 32 - 1]],
    code: 'CORRUPT',
    message: /4294967295 entries, above/,
  },
]
for (const { title, pokes, code, message } of refused) {
  t.test(`refused: ${title}`, async t => {
    const bytes = poked(buildCowd(HONEST).bytes, pokes)
    const error = thrownBy(() => readCowdHeader(stored(bytes)))
    t.match(oneLine(error), message)
    t.equal(error.code, code)
    t.equal(error.context.path, 'disk-delta.vmdk')
    t.ok(error.context.hint)
  })
}

t.test('refused: cut off', async t => {
  const { bytes } = buildCowd(HONEST)
  for (const length of [0, 3, 4, 512, 2047]) {
    const error = thrownBy(() => readCowdHeader(stored(bytes.subarray(0, length))))
    t.equal(error.code, 'NOT_AN_IMAGE')
    t.match(error.message, length < 4 ? /no COWD/ : new RegExp(`cut off after ${length} bytes`))
  }
})

t.test('entries that cannot be', async t => {
  const built = buildCowd({ ...HONEST, grains: grainsOf([0, 1, 2, 5000], 512) })
  const fileSectors = built.bytes.length / 512
  const tableSector = built.bytes.readUInt32LE(built.directoryEntryAt(0))
  const cases: { title: string; sector: number; message: RegExp }[] = [
    { title: 'in the header', sector: 1, message: /grain at 512, which lies over the header/ },
    { title: 'in the directory', sector: 4, message: /at 2048, which lies over the grain dir/ },
    { title: 'in its table', sector: tableSector + 31, message: /lies over its own table/ },
    { title: 'at the end of the file', sector: fileSectors, message: /is beyond the end/ },
    {
      title: 'far away',
      sector: 2 ** 32 - 1,
      message: /grain at 2199023255040, .* beyond the end/,
    },
  ]
  for (const { title, sector, message } of cases) {
    const driver = driverOf(stored(poked(built.bytes, [[built.entryAt(1), 4, sector]])))
    const view = overRaw(driver)
    t.ok(readAt(view, 0, 512).equals(noise(512, 1)), `${title}: the part before it reads`)
    t.ok(readAt(view, 1024, 512).equals(noise(512, 3)), `${title}: the part after it reads`)
    t.same(extentsOf(driver, 0, 512).length, 1)
    t.equal(driver.lookup(0, 4096).length, 512, `${title}: the part before it comes first`)
    const error = thrownBy(() => readAt(view, 512, 512))
    t.match(error, { code: 'CORRUPT', message, context: { offset: 512, path: 'disk-delta.vmdk' } })
  }
})

t.test('directory entries that cannot be', async t => {
  const built = buildCowd(HONEST)
  const fileSectors = built.bytes.length / 512
  const cases: { title: string; sector: number; message: RegExp }[] = [
    { title: 'in the header', sector: 1, message: /entry 1 .* at 512, which lies over the header/ },
    { title: 'in the directory', sector: 4, message: /which lies over the grain directory/ },
    { title: 'beyond the end', sector: fileSectors, message: /which is beyond the end/ },
    { title: 'cut off', sector: fileSectors - 1, message: /table at \d+ lies beyond the end/ },
  ]
  for (const { title, sector, message } of cases) {
    const bytes = poked(built.bytes, [[built.directoryEntryAt(1), 4, sector]])
    const view = overRaw(driverOf(stored(bytes)))
    t.ok(readAt(view, 0, 512).equals(noise(512, 1)), title)
    const error = thrownBy(() => readAt(view, 5000 * 512, 512))
    t.match(error, { code: 'CORRUPT', message, context: { offset: 5000 * 512 } })
  }
  const unallocated = poked(built.bytes, [
    [built.directoryEntryAt(0), 4, 0],
    [built.directoryEntryAt(1), 4, 1],
  ])
  t.equal(
    driverOf(stored(unallocated)).lookup(0, 2 ** 22).length,
    2 ** 21,
    'unallocated up to the damage',
  )
})

t.test('a grain that begins before its table or directory and ends in it', async t => {
  const spec: CowdSpec = {
    sectors: 64,
    grainSectors: 8,
    directorySector: 8,
    gapSectors: 9,
    grains: grainsOf([0, 1], 4 * K),
  }
  const built = buildCowd(spec)
  const table = built.bytes.readUInt32LE(built.directoryEntryAt(0))
  for (const [sector, message] of [
    [7, /lies over the grain directory/],
    [table + 31, /lies over its own table/],
  ] as const) {
    const driver = driverOf(stored(poked(built.bytes, [[built.entryAt(0), 4, sector]])))
    t.match(thrownBy(() => driver.lookup(0, 512)).message, message)
  }
  const roomy = driverOf(stored(poked(built.bytes, [[built.entryAt(0), 4, table + 32]])))
  t.match(roomy.lookup(0, 512), { kind: 'data', at: (table + 32) * 512 })
})

t.test('a grain table that the end of the file cuts off', async t => {
  const { bytes } = buildCowd({ sectors: 4096, emptyTables: [0] })
  const driver = driverOf(stored(bytes.subarray(0, bytes.length - 4096)))
  t.same(driver.lookup(0, 2 ** 21), { kind: 'parent', length: 3072 * 512 }, 'up to the cut')
  const error = thrownBy(() => driver.lookup(3072 * 512, 512))
  t.match(error, { code: 'CORRUPT', message: /table at \d+ lies beyond the end of the file/ })
})

t.test('any bytes changed', async t => {
  const built = buildCowd({ ...HONEST, grains: grainsOf([...range(0, 40), 5000, 8191], 512) })
  const edges = fc.constantFrom(0, 1, 4, 5, 37, 38, 4096, 2 ** 20, 2 ** 31, 2 ** 32 - 1)
  const value = fc.oneof(fc.nat(200), edges, fc.integer({ min: 0, max: 2 ** 32 - 1 }))
  const regions = [0, 2048, built.entryAt(0), built.entryAt(5000)]
  const poke = fc.record({ region: fc.nat(3), entry: fc.nat(13), value })
  const cut = fc.option(fc.nat(built.bytes.length), { freq: 4 })
  const cases = fc.record({ pokes: fc.array(poke, { minLength: 1, maxLength: 4 }), cut })
  let opened = 0
  const runs = await holds(cases, 300, ({ pokes, cut }) => {
    const bytes = poked(
      built.bytes,
      pokes.map(({ region, entry, value }) => [(regions[region] as number) + entry * 4, 4, value]),
    )
    if (exercise(stored(bytes.subarray(0, cut ?? bytes.length)), driverOf)) opened++
  })
  t.comment(`${runs} extents, ${opened} opened`)
  t.ok(opened > 20, `${opened} of ${runs} opened`)
})

t.test('any grains: qemu-img reads the same', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  const disk = fc.record({
    sectors: fc.integer({ min: 1, max: 40_000 }),
    grainBits: fc.nat(7),
    gapSectors: fc.nat(9),
    grains: fc.uniqueArray(fc.nat(9000), { maxLength: 40 }),
    sort: fc.boolean(),
  })
  const runs = await holds(disk, 5, async ({ sectors, grainBits, gapSectors, grains, sort }) => {
    const grainSectors = 2 ** grainBits
    const inside = grains.filter(grain => grain * grainSectors < sectors)
    if (sort) inside.sort((a, b) => a - b)
    const bytes = grainsOf(inside, grainSectors * 512)
    const spec = { sectors, grainSectors, gapSectors, grains: bytes }
    const extent = buildCowd(spec).bytes
    const parent = noise(sectors * 512, 77)
    const ours = readAll(overRaw(driverOf(stored(extent)), parent))
    if (!ours.equals(modelOf(spec, parent))) throw new Error('not what the model has')
    const theirs = await rawByQemu(folder, { type: 'VMFSSPARSE', bytes: extent }, sectors, parent)
    if (!theirs.equals(ours)) throw new Error('not what qemu-img reads')
  })
  t.ok(runs >= 2, `${runs} disks`)
})

t.test('a COWD file without a descriptor: qemu-img agrees', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  // QEMU looks for these words after the first sector of any sparse file, and needs them.
  const { bytes } = buildCowd(HONEST)
  bytes.write('CID=12345678\nparentCID=ffffffff\n', 512, 'latin1')
  writeFileSync(join(folder, 'bare.vmdk'), bytes)
  const theirs = await convert(folder, 'bare.vmdk')
  t.ok(theirs.equals(readAll(overRaw(driverOf(stored(bytes))))))
})
