/** seSparse extents: the headers field by field, every byte, and what damage leaves readable. */
import fc from 'fast-check'
import t from 'tap'
import { oneLine } from '../../../src/errors.js'
import { readSesparseHeader, SesparseDriver } from '../../../src/formats/vmdk/sesparse.js'
import type { Store } from '../../../src/io/store.js'
import { noise } from '../../fixtures/model.js'
import {
  buildSesparse,
  type SesparseGrain,
  type SesparseSpec,
} from '../../fixtures/sesparse-builder.js'
import { readAll, readAt } from '../../support/image.js'
import { holds } from '../../support/property.js'
import { needs, tempFolder } from '../../support/run.js'
import { MemoryStore } from '../../support/stores.js'
import {
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

const K = 1024
const M = K * K
const GRAIN = 4 * K
/** Grains that one table maps, and their sectors. */
const COVERED = 4096
const COVERED_SECTORS = COVERED * 8

const driverOf = (store: Store) => new SesparseDriver(harshParts(store), readSesparseHeader(store))
const stored = (bytes: Buffer) => new MemoryStore('disk-sesparse.vmdk', bytes)
const data = (seed: number, length = GRAIN): SesparseGrain => ({
  kind: 'data',
  bytes: noise(length, seed),
})

/** What the disk holds, by the grains it was built of. */
function modelOf({ sectors, grains }: SesparseSpec, parent?: Buffer): Buffer {
  const disk = Buffer.alloc(sectors * 512)
  parent?.copy(disk)
  for (const [grain, what] of grains ?? []) {
    disk.fill(0, grain * GRAIN, Math.min((grain + 1) * GRAIN, disk.length))
    if (what.kind === 'data') what.bytes.copy(disk, grain * GRAIN)
  }
  return disk
}

const disks: { title: string; spec: SesparseSpec; parent?: Buffer; step: number }[] = [
  {
    title: 'all kinds over a parent, the last table in part',
    spec: {
      sectors: 2 * COVERED_SECTORS + 19,
      grains: new Map<number, SesparseGrain>([
        // The tables are numbered in another order than they have on the disk.
        [8192, data(1)],
        [8193, { kind: 'zero' }],
        [0, data(2)],
        [1, data(3)],
        [2, { kind: 'zero' }],
        [3, { kind: 'unmapped' }],
        [5, data(5)],
        [4, data(6)],
        [510, data(7)],
        [511, data(8)],
        [512, data(9)],
        [4095, data(10)],
        [8194, data(11)],
      ]),
    },
    parent: noise(2 * COVERED * GRAIN + 700, 99),
    step: 512 * GRAIN,
  },
  {
    title: 'an absent table, an empty one, and more of a directory than needed, over nothing',
    spec: {
      sectors: 3 * COVERED_SECTORS,
      directorySectors: 40,
      emptyTables: [0],
      grainsGap: 5,
      grains: new Map<number, SesparseGrain>([
        [12287, data(1)],
        [8192, { kind: 'unmapped' }],
        [8193, data(2)],
      ]),
    },
    step: 16 * M,
  },
  {
    title: 'grains whose numbers have both of their parts',
    spec: {
      sectors: 5 * 8,
      firstGrain: 2 * 4096 - 2,
      grains: new Map([0, 1, 2, 3].map(i => [i, data(i + 1)])),
    },
    step: GRAIN,
  },
]
for (const { title, spec, parent, step } of disks) {
  t.test(title, async t => {
    const driver = driverOf(stored(buildSesparse(spec).bytes))
    t.equal(driver.sizeBytes, spec.sectors * 512)
    t.equal(driver.unitBytes, GRAIN)
    t.same(wrongReads(overRaw(driver, parent), modelOf(spec, parent), step), [])
  })
  t.test(`${title}: qemu-img agrees`, needs('qemu-img'), async t => {
    const flat = parent && Buffer.concat([parent, Buffer.alloc(-parent.length & 511)])
    const { bytes } = buildSesparse(spec)
    const theirs = await rawByQemu(tempFolder(t), { type: 'SESPARSE', bytes }, spec.sectors, flat)
    t.ok(theirs.equals(readAll(overRaw(driverOf(stored(bytes)), flat))))
  })
}

t.test('neighbours are one extent', async t => {
  const range = (from: number, to: number) => Array.from({ length: to - from }, (_, i) => from + i)
  const zeros = range(10, 20).map(i => [i, { kind: i % 2 ? 'zero' : 'unmapped' }] as const)
  const spec: SesparseSpec = {
    sectors: 4 * COVERED_SECTORS,
    firstGrain: 4090,
    grains: new Map<number, SesparseGrain>([
      ...range(0, 10).map(i => [i, data(i)] as const),
      ...zeros,
      ...range(500, 530).map(i => [i, data(i)] as const),
      [531, data(531)],
      [530, data(530)],
      [3 * COVERED, { kind: 'zero' }],
    ]),
  }
  const built = buildSesparse(spec)
  const driver = driverOf(stored(built.bytes))
  t.same(extentsOf(driver, 0, driver.sizeBytes), [
    `data ${10 * GRAIN} at ${built.placeOf(0)}`,
    `zero ${10 * GRAIN}`,
    `parent ${480 * GRAIN}`,
    `data ${30 * GRAIN} at ${built.placeOf(500)}`,
    `data ${GRAIN} at ${built.placeOf(530)}`,
    `data ${GRAIN} at ${built.placeOf(531)}`,
    `parent ${(COVERED - 532) * GRAIN}`,
    `parent ${2 * COVERED * GRAIN}`,
    `zero ${GRAIN}`,
    `parent ${(COVERED - 1) * GRAIN}`,
  ])
  t.same(extentsOf(driver, GRAIN + 7, 9 * GRAIN), [
    `data ${9 * GRAIN - 7} at ${built.placeOf(1) + 7}`,
    'zero 7',
  ])
})

t.test('a file that ends within a grain that begins at any sector', async t => {
  const spec: SesparseSpec = {
    sectors: 64,
    grainsGap: 3,
    grains: new Map([
      [0, data(1)],
      [1, data(2, 100)],
    ]),
  }
  const built = buildSesparse(spec)
  const driver = driverOf(stored(built.bytes))
  t.same(extentsOf(driver, 0, GRAIN + 100), [`data ${GRAIN + 100} at ${built.placeOf(0)}`])
  for (const offset of [GRAIN + 100, GRAIN + 200]) {
    const { message } = thrownBy(() => driver.lookup(offset, 10))
    t.match(message, /grain's bytes at \d+ lie beyond the end of the file/)
  }
  t.same(extentsOf(driver, 2 * GRAIN, 512), ['parent 512'])
})

t.test('64 TiB', async t => {
  const sectors = 2 ** 37
  // The tables have no region as large as they could need: as many as there are.
  const small = buildSesparse({ sectors: 3 * COVERED_SECTORS, directorySectors: 2 ** 16 })
  const store = stored(poked(small.bytes, [[16, 8, sectors]]))
  store.write(
    poked(Buffer.alloc(8), [[0, 8, 0x1000000000000002n]]),
    0,
    8,
    small.directoryEntryAt(2 ** 22 - 1),
  )
  const tableAt = (small.sector.tables + 2 * 64) * 512
  const entry = poked(Buffer.alloc(8), [[0, 8, 0x3000000000000000n]])
  store.write(entry, 0, 8, tableAt + 4095 * 8)
  store.write(noise(GRAIN, 1), 0, GRAIN, small.sector.grains * 512)
  const parts = harshParts(store)
  const driver = new SesparseDriver(parts, readSesparseHeader(store))
  t.equal(driver.sizeBytes, 64 * 2 ** 40)
  const last = driver.sizeBytes - GRAIN
  const expected = Buffer.concat([Buffer.alloc(512), noise(GRAIN, 1)])
  t.ok(readAt(overRaw(driver), last - 512, GRAIN + 512).equals(expected))
  parts.reads = 0
  const extents = extentsOf(driver, 0, driver.sizeBytes)
  t.equal(extents.at(-1), `data ${GRAIN} at ${small.sector.grains * 512}`)
  t.ok(extents.length < 8200, `${extents.length} extents`)
  t.ok(parts.reads < 8300, `${parts.reads} slices read`)
})

const HONEST: SesparseSpec = {
  sectors: 2 * COVERED_SECTORS,
  grains: new Map<number, SesparseGrain>([
    [0, data(1)],
    [1, data(2)],
    [2, data(3)],
    [5000, data(4)],
  ]),
}
const honest = buildSesparse(HONEST)
const REGIONS = [
  ['volatileHeader', 'the volatile header', 80],
  ['journalHeader', 'the journal header', 96],
  ['journal', 'the journal', 112],
  ['directory', 'the grain directory', 128],
  ['tables', 'the grain tables', 144],
  ['freeBitmap', 'the free bitmap', 160],
  ['backMap', 'the back map', 176],
  ['grains', 'the grains', 192],
] as const

t.test('the header as it is read', async t => {
  const at = (sector: number, count: number) => ({ offset: sector * 512, bytes: count * 512 })
  const header = readSesparseHeader(stored(honest.bytes))
  t.same(structuredClone(header), {
    capacityBytes: 32 * M,
    grainBytes: GRAIN,
    regions: {
      volatileHeader: at(1, 1),
      journalHeader: at(2, 2),
      journal: at(4, 16),
      directory: at(20, 1),
      tables: at(21, 128),
      freeBitmap: at(149, 3),
      backMap: at(152, 5),
      grains: at(157, 65536),
    },
    warnings: [],
  })
  const empty = poked(honest.bytes, [[16, 8, 0]])
  t.equal(readSesparseHeader(stored(empty)).capacityBytes, 0)
})

const refused: { title: string; pokes: Poke[]; code: string; message: RegExp }[] = [
  { title: 'the magic', pokes: [[0, 1, 0]], code: 'NOT_AN_IMAGE', message: /0xcafebabe/ },
  { title: 'a longer magic', pokes: [[7, 1, 1]], code: 'NOT_AN_IMAGE', message: /0xcafebabe/ },
  {
    title: 'version 2.2',
    pokes: [[8, 8, 0x200000002n]],
    code: 'UNSUPPORTED',
    message: /version 0x200000002 is not known, only 0x200000001/,
  },
  {
    title: 'the capacity',
    pokes: [[16, 8, 64 * COVERED_SECTORS + 1]],
    code: 'CORRUPT',
    message: /64 entries and the disk needs 65/,
  },
  {
    title: 'a capacity of 2^64 - 1 sectors',
    pokes: [[16, 8, 2n ** 64n - 1n]],
    code: 'UNSUPPORTED',
    message: /the disk is too large: it has 9444732965739290426880 bytes/,
  },
  {
    title: 'the grain',
    pokes: [[24, 8, 16]],
    code: 'UNSUPPORTED',
    message: /grains of 16 sectors/,
  },
  { title: 'the table', pokes: [[32, 8, 0]], code: 'UNSUPPORTED', message: /tables of 0 sectors/ },
  {
    title: 'flags',
    pokes: [[40, 8, 2n ** 63n]],
    code: 'UNSUPPORTED',
    message: /flags 0x8000000000/,
  },
  ...[48, 56, 64, 72, 79].map(at => ({
    title: `the reserved byte ${at}`,
    pokes: [[at, 1, 1]] satisfies Poke[],
    code: 'UNSUPPORTED',
    message: /reserved fields/,
  })),
  ...[208, 511].map(at => ({
    title: `the padding at ${at}`,
    pokes: [[at, 1, 1]] satisfies Poke[],
    code: 'UNSUPPORTED',
    message: /padding of the seSparse header/,
  })),
  ...REGIONS.flatMap(([, name, at]) => [
    {
      title: `${name} over the header`,
      pokes: [[at, 8, 0]] satisfies Poke[],
      code: 'CORRUPT',
      message: new RegExp(`${name} at 0 overlaps|at 0 overlaps ${name}|overlaps the header`),
    },
    {
      title: `${name} at 2^64 - 1`,
      pokes: [[at, 8, 2n ** 64n - 1n]] satisfies Poke[],
      code: 'CORRUPT',
      message: new RegExp(`${name} cannot have \\d+ sectors at sector 18446744073709551615`),
    },
    {
      title: `${name} of 2^53 sectors`,
      pokes: [[at + 8, 8, 2n ** 53n]] satisfies Poke[],
      code: 'CORRUPT',
      message: new RegExp(`${name} cannot have 9007199254740992 sectors`),
    },
  ]),
  ...REGIONS.slice(0, -1).flatMap(([, name, at]) => [
    {
      title: `${name} beyond the end`,
      pokes: [[at, 8, 100_000]] satisfies Poke[],
      code: 'CORRUPT',
      message: new RegExp(`${name} at 51200000 lies beyond the end of the file`),
    },
    {
      title: `${name} over the one after it`,
      pokes: [[at + 8, 8, honest.bytes.readUInt32LE(at + 8) + 1]] satisfies Poke[],
      code: 'CORRUPT',
      message: / overlaps the /,
    },
  ]),
  {
    title: 'no volatile header',
    pokes: [[88, 8, 0]],
    code: 'CORRUPT',
    message: /no volatile header/,
  },
  {
    title: 'no directory',
    pokes: [[136, 8, 0]],
    code: 'CORRUPT',
    message: /0 entries and the disk needs 2/,
  },
  {
    title: 'the magic of the volatile header',
    pokes: [[512, 1, 0]],
    code: 'CORRUPT',
    message: /no volatile header at 512: no 0xcafecafe/,
  },
  {
    title: 'a journal to be replayed',
    pokes: [[512 + 24, 8, 1]],
    code: 'UNSUPPORTED',
    message:
      /not closed cleanly: .* journal, which is not read; open the disk once on its ESX host/,
  },
  {
    title: 'a journal to be replayed, in the last byte',
    pokes: [[512 + 31, 1, 0x80]],
    code: 'UNSUPPORTED',
    message: /journal/,
  },
  ...[32, 511].map(at => ({
    title: `the padding of the volatile header at ${at}`,
    pokes: [[512 + at, 1, 1]] satisfies Poke[],
    code: 'UNSUPPORTED',
    message: /padding of the volatile header/,
  })),
]
for (const { title, pokes, code, message } of refused) {
  t.test(`refused: ${title}`, async t => {
    const error = thrownBy(() => readSesparseHeader(stored(poked(honest.bytes, pokes))))
    t.match(oneLine(error), message)
    t.equal(error.code, code)
    t.equal(error.context.path, 'disk-sesparse.vmdk')
    t.ok(error.context.hint)
  })
}

t.test('refused: a directory of more entries than QEMU takes', async t => {
  const store = stored(
    poked(honest.bytes, [
      [128, 8, 2 ** 20],
      [136, 8, 2 ** 19 + 1],
    ]),
  )
  store.truncate(2 ** 30)
  const pokes = poked(Buffer.alloc(16), [
    [0, 8, 2 ** 30 / 512],
    [8, 8, 8],
  ])
  store.write(pokes, 0, 16, 192)
  t.match(thrownBy(() => readSesparseHeader(store)).message, /33554496 entries, above 33554432/)
})

t.test('refused: cut off', async t => {
  for (const length of [0, 3, 7, 511]) {
    const cut = stored(honest.bytes.subarray(0, length))
    const error = thrownBy(() => readSesparseHeader(cut))
    t.equal(error.code, 'NOT_AN_IMAGE')
    t.match(error.message, length < 4 ? /no seSparse/ : new RegExp(`cut off after ${length} bytes`))
  }
})

t.test('entries that cannot be', async t => {
  const cases: { title: string; entry: bigint; message: RegExp }[] = [
    { title: 'unallocated with an index', entry: 1n, message: /0x0000000000000001 means nothing/ },
    {
      title: 'unallocated with a high index',
      entry: 1n << 59n,
      message: /0x0800000000000000 means/,
    },
    ...[4n, 5n, 8n, 15n].map(nibble => ({
      title: `kind ${nibble}`,
      entry: nibble << 60n,
      message: /means nothing/,
    })),
    { title: 'just beyond the end', entry: 0x3004n << 48n, message: /which is beyond the end/ },
    { title: 'the highest grain', entry: (1n << 62n) - 1n, message: /beyond the end of the file/ },
  ]
  for (const { title, entry, message } of cases) {
    const bytes = poked(honest.bytes, [[honest.entryAt(1), 8, entry]])
    const driver = driverOf(stored(bytes))
    const view = overRaw(driver)
    t.ok(readAt(view, 0, GRAIN).equals(noise(GRAIN, 1)), `${title}: the part before it reads`)
    t.ok(readAt(view, 2 * GRAIN, GRAIN).equals(noise(GRAIN, 3)), `${title}: the part after it`)
    t.equal(driver.lookup(0, 3 * GRAIN).length, GRAIN, `${title}: the part before it comes first`)
    const error = thrownBy(() => readAt(view, GRAIN + 9, 512))
    const context = { offset: GRAIN + 9, path: 'disk-sesparse.vmdk' }
    t.match(error, { code: 'CORRUPT', message, context })
  }
})

t.test('a grain past the region of grains', async t => {
  // The back map moves after the grains; it has 5 sectors, and the last grain would touch it.
  const bytes = Buffer.concat([honest.bytes, Buffer.alloc(80 * 512)])
  const end = honest.bytes.length / 512
  const pokes: Poke[] = [
    [176, 8, end + 9],
    [200, 8, 32],
  ]
  const driver = driverOf(stored(poked(bytes, pokes)))
  t.ok(readAt(overRaw(driver), 5000 * GRAIN, GRAIN).equals(noise(GRAIN, 4)))
  const beside = [...pokes, [honest.entryAt(1), 8, 0x3004n << 48n]] as Poke[]
  t.equal(driverOf(stored(poked(bytes, beside))).lookup(GRAIN, 9).kind, 'data')
  const over = [...pokes, [honest.entryAt(1), 8, 0x3005n << 48n]] as Poke[]
  const error = thrownBy(() => driverOf(stored(poked(bytes, over))).lookup(GRAIN, 9))
  t.match(error.message, /which is not among the grains/)
})

t.test('directory entries that cannot be', async t => {
  const cases: { title: string; entry: bigint; message: RegExp }[] = [
    { title: 'no flag', entry: 1n, message: /entry 1 is 0x0000000000000001, which names no grain/ },
    {
      title: 'another flag',
      entry: 0x20000000n << 32n,
      message: /0x2000000000000000, which names/,
    },
    { title: 'more flags', entry: 0x10000001n << 32n, message: /0x1000000100000000, which names/ },
    { title: 'a far table', entry: 0x1000000000000002n, message: /names the grain table 2 of 2/ },
    { title: 'the last', entry: 0x10000000ffffffffn, message: /table 4294967295 of 2/ },
  ]
  for (const { title, entry, message } of cases) {
    const bytes = poked(honest.bytes, [[honest.directoryEntryAt(1), 8, entry]])
    const view = overRaw(driverOf(stored(bytes)))
    t.ok(readAt(view, 0, GRAIN).equals(noise(GRAIN, 1)), title)
    const error = thrownBy(() => readAt(view, 5000 * GRAIN, 512))
    t.match(error, { code: 'CORRUPT', message, context: { offset: 5000 * GRAIN } })
  }
  const unallocated = poked(honest.bytes, [
    [honest.directoryEntryAt(0), 8, 0],
    [honest.directoryEntryAt(1), 8, 1],
  ])
  t.equal(
    driverOf(stored(unallocated)).lookup(0, 32 * M).length,
    16 * M,
    'unallocated up to the damage',
  )
})

t.test('any bytes changed', async t => {
  const edges = fc.constantFrom(
    0n,
    1n,
    8n,
    64n,
    0x1000000000000000n,
    0x1000000000000001n,
    0x2000000000000000n,
    0x3000000000000001n,
    0x3001000000000000n,
    1n << 53n,
    1n << 63n,
    (1n << 64n) - 1n,
  )
  const any = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n })
  const value = fc.oneof(fc.bigInt({ min: 0n, max: 200n }), edges, any)
  const tables = [honest.directoryEntryAt(0), honest.entryAt(0), honest.entryAt(5000)]
  const inHeader = fc.nat(25).map(field => field * 8)
  const inTables = fc.record({ table: fc.nat(2), entry: fc.nat(5) })
  const at = fc.oneof(
    inHeader,
    fc.nat(5).map(field => 512 + field * 8),
    inTables.map(({ table, entry }) => (tables[table] as number) + entry * 8),
    inTables.map(({ table, entry }) => (tables[table] as number) + entry * 8),
  )
  const poke = fc.record({ at, value })
  const cut = fc.option(fc.nat(honest.bytes.length), { freq: 5 })
  const cases = fc.record({ pokes: fc.array(poke, { minLength: 1, maxLength: 3 }), cut })
  let opened = 0
  const runs = await holds(cases, 300, ({ pokes, cut }) => {
    const bytes = poked(
      honest.bytes,
      pokes.map(({ at, value }) => [at, 8, value]),
    )
    if (exercise(stored(bytes.subarray(0, cut ?? bytes.length)), driverOf)) opened++
  })
  t.comment(`${runs} extents, ${opened} opened`)
  t.ok(opened > 20, `${opened} of ${runs} opened`)
})

t.test('any grains: qemu-img reads the same', needs('qemu-img'), async t => {
  const folder = tempFolder(t)
  const kind = fc.constantFrom('data', 'data', 'zero', 'unmapped')
  const grain = fc.record({ index: fc.nat(5000), kind })
  const disk = fc.record({
    sectors: fc.integer({ min: 1, max: 45_000 }),
    grainsGap: fc.nat(9),
    firstGrain: fc.constantFrom(0, 1, 4090),
    grains: fc.uniqueArray(grain, { maxLength: 40, selector: ({ index }) => index }),
    sort: fc.boolean(),
  })
  const runs = await holds(disk, 5, async ({ sectors, grainsGap, firstGrain, grains, sort }) => {
    const inside = grains.filter(({ index }) => index * 8 < sectors)
    if (sort) inside.sort((a, b) => a.index - b.index)
    const all = inside.map(({ index, kind }): [number, SesparseGrain] => [
      index,
      kind === 'data' ? data(index) : { kind: kind as 'zero' | 'unmapped' },
    ])
    const spec: SesparseSpec = { sectors, grainsGap, firstGrain, grains: new Map(all) }
    const { bytes } = buildSesparse(spec)
    const parent = noise(sectors * 512, 77)
    const ours = readAll(overRaw(driverOf(stored(bytes)), parent))
    if (!ours.equals(modelOf(spec, parent))) throw new Error('not what the model has')
    const theirs = await rawByQemu(folder, { type: 'SESPARSE', bytes }, sectors, parent)
    if (!theirs.equals(ours)) throw new Error('not what qemu-img reads')
  })
  t.ok(runs >= 2, `${runs} disks`)
})
