/** Checks the tables of hosted sparse and COWD extents: case by case, and against a slow model. */
import { strict as assert } from 'node:assert'
import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { readCowdHeader } from '../../../src/formats/vmdk/cowd.js'
import { inspectGrains } from '../../../src/formats/vmdk/grain-check.js'
import type { GrainTotals } from '../../../src/formats/vmdk/check/grain-sink.js'
import { type GrainLayout, grainLayout } from '../../../src/formats/vmdk/layout.js'
import { readSparseHeader } from '../../../src/formats/vmdk/sparse-header.js'
import { FileStore } from '../../../src/io/store.js'
import { type BuiltCowd, buildCowd } from '../../fixtures/cowd-builder.js'
import { noise } from '../../fixtures/model.js'
import {
  type BuiltExtent,
  buildExtent,
  type ExtentSpec,
  type Grain,
  HEADER_AT,
} from '../../fixtures/vmdk-builder.js'
import { holds } from '../../support/property.js'
import { tempFolder } from '../../support/run.js'
import { MemoryStore } from '../../support/stores.js'
import { type Poke, poked } from './grains.js'

const SECTOR = 512

interface Found {
  readonly corruptions: number[]
  /** The place, that of the first one, whether it is a contradiction. */
  readonly disagreements: [number, number, boolean][]
  readonly surplus: number[]
  /** The place and the bytes. */
  readonly unused: [number, number][]
  readonly totals: GrainTotals | undefined
}

interface Finding extends Found {
  readonly messages: string[]
}

function inspected(bytes: Buffer, layout: GrainLayout, windowBytes?: number): Finding {
  const messages: string[] = []
  let totals: GrainTotals | undefined
  const corruptions: number[] = []
  const disagreements: [number, number, boolean][] = []
  const surplus: number[] = []
  const unused: [number, number][] = []
  inspectGrains(
    new MemoryStore('x.vmdk', bytes),
    layout,
    {
      corruption: (at, message) => {
        corruptions.push(at)
        messages.push(message())
      },
      disagreement: (at, from, isContradiction, message) => {
        disagreements.push([at, from, isContradiction])
        messages.push(message())
      },
      surplusTable: (at, message) => {
        surplus.push(at)
        messages.push(message())
      },
      unused: (at, length) => unused.push([at, length]),
      grains: found => {
        totals = found
      },
    },
    windowBytes === undefined ? {} : { windowBytes },
  )
  corruptions.sort((a, b) => a - b)
  return { corruptions, disagreements, surplus, unused, totals, messages }
}

const layoutOf = (bytes: Buffer): GrainLayout => {
  const store = new MemoryStore('x.vmdk', bytes)
  const layout =
    bytes.toString('latin1', 0, 4) === 'COWD'
      ? grainLayout({ kind: 'cowd', header: readCowdHeader(store) })
      : grainLayout({ kind: 'sparse', header: readSparseHeader(store) })
  assert(layout)
  return layout
}

/** The same, sector by sector, by VMware's specification and by nothing of src/ but the layout. */
function modelled(bytes: Buffer, layout: GrainLayout): Found {
  const sectors = Math.ceil(bytes.length / SECTOR)
  const grain = layout.grainBytes / SECTOR
  const perTable = layout.tableEntries
  const table = Math.ceil((perTable * 4) / SECTOR)
  const isCowd = layout.freeSectorAt !== undefined
  const wholeSectors = Math.floor(bytes.length / SECTOR)
  const mayEndEarly =
    isCowd &&
    wholeSectors === sectors &&
    bytes.readUInt32LE(layout.freeSectorAt as number) <= sectors
  const used = new Set<number>()
  const corruptions: number[] = []
  const disagreements: [number, number, boolean][] = []
  const surplus: number[] = []
  let end = 0
  const take = (first: number, count: number): boolean => {
    let isFree = true
    for (let s = first; s < first + count; s++) {
      if (used.has(s)) isFree = false
      used.add(s)
    }
    if (first < sectors) end = Math.max(end, first + count)
    return isFree
  }
  const wholly = (entries: number) => Math.ceil((entries * 4) / SECTOR)
  for (const { offset, bytes: length } of layout.reserved) take(offset / SECTOR, length / SECTOR)
  const count = Math.ceil(layout.capacityBytes / (layout.grainBytes * perTable))
  const places = [layout.directoryAt, layout.redundantDirectoryAt].filter(at => at !== undefined)
  for (const at of places) take(at / SECTOR, wholly(layout.directoryEntries))
  const [first = [], redundant] = places.map((directoryAt, which) =>
    Array.from({ length: count }, (_, i) => {
      const at = directoryAt + i * 4
      const sector = bytes.readUInt32LE(at)
      if (sector === 0) return { at, state: 'none', sector } as const
      const isShared = which === 1 && sector === bytes.readUInt32LE(layout.directoryAt + i * 4)
      if (isShared) return { at, state: 'shared', sector } as const
      const isThere = (sector + table) * SECTOR <= bytes.length
      if (isThere && take(sector, table)) return { at, state: 'good', sector } as const
      corruptions.push(at)
      return { at, state: 'bad', sector } as const
    }),
  )
  const entry = (sector: number, i: number) => bytes.readUInt32LE(sector * SECTOR + i * 4)
  const isNamed = (value: number) => value > (layout.hasZeroGrains ? 1 : 0)
  let allocated = 0
  let fragmented = 0
  let next = -1
  first.forEach(({ state, sector }, index) => {
    if (state !== 'good') return
    for (let i = 0; i < perTable; i++) {
      const place = entry(sector, i)
      if (!isNamed(place)) continue
      allocated++
      if (next >= 0 && place !== next) fragmented++
      next = place + grain
      const isThere = place < sectors
      const diskBytes = layout.capacityBytes - (index * perTable + i) * layout.grainBytes
      const needed = Math.ceil(Math.min(layout.grainBytes, Math.max(0, diskBytes)) / SECTOR)
      const isWhole = mayEndEarly || place + needed <= wholeSectors
      const isFree = isThere && take(place, grain)
      if (!isThere || !isWhole || !isFree) corruptions.push(sector * SECTOR + i * 4)
    }
  })
  redundant?.forEach((other, index) => {
    const mine = first[index]
    if (!mine || mine.state === 'bad' || other.state !== 'good') return
    let differs = false
    let contradicts = false
    for (let i = 0; i < perTable; i++) {
      const said = mine.state === 'good' ? entry(mine.sector, i) : 0
      const value = entry(other.sector, i)
      if (said === value) continue
      differs = true
      if (said >= sectors && value > 0 && value < sectors) contradicts = true
      const isPlace = isNamed(value) && value < sectors
      if (isPlace && (isNamed(said) || (said === 0 && !layout.isUnclean))) contradicts = true
    }
    if (!differs) return
    if (mine.state === 'good') {
      disagreements.push([other.sector * SECTOR, mine.sector * SECTOR, contradicts])
    } else if (layout.isUnclean) surplus.push(other.at)
    else corruptions.push(other.at)
  })
  const front = isCowd ? 0 : Number(bytes.readBigUInt64LE(HEADER_AT.overhead))
  const back = isCowd ? bytes.readUInt32LE(layout.freeSectorAt as number) : sectors
  if (isCowd && end > back) corruptions.push(layout.freeSectorAt as number)
  const unused: [number, number][] = []
  for (let s = 0; s < sectors; s++) {
    const from = s
    while (s < sectors && !used.has(s)) s++
    const [a, b] = [Math.max(from, front), Math.min(s, back)]
    if (b - a >= grain) {
      unused.push([a * SECTOR, Math.min(b * SECTOR, bytes.length) - a * SECTOR])
    }
  }
  corruptions.sort((a, b) => a - b)
  const totals = { allocated, fragmented, endBytes: end * SECTOR }
  return { corruptions, disagreements, surplus, unused, totals }
}

const data = (seed: number, grainSectors: number): Grain => ({
  kind: 'data',
  bytes: noise(grainSectors * SECTOR, seed),
})

const SPARSE: ExtentSpec = {
  capacitySectors: 8 * 4 * 40 - 3,
  grainSectors: 8,
  tableEntries: 4,
  hasZeroGrains: true,
  version: 2,
  descriptor: 'x',
  grains: new Map<number, Grain>([
    [0, data(1, 8)],
    [1, data(2, 8)],
    [2, { kind: 'zero' }],
    [7, data(3, 8)],
    [6, data(4, 8)],
    [100, data(5, 8)],
    [159, data(6, 8)],
  ]),
}
const sparse = buildExtent(SPARSE)
const sparseLayout = layoutOf(sparse.bytes)
const cowd = buildCowd({
  sectors: 3 * 4096 + 5,
  grains: new Map([
    [0, noise(512, 1)],
    [1, noise(512, 2)],
    [5000, noise(512, 3)],
    [5001, noise(512, 4)],
    [4, noise(512, 5)],
  ]),
})

const NONE: Found = {
  corruptions: [],
  disagreements: [],
  surplus: [],
  unused: [],
  totals: undefined,
}
// An empty list would match any.
const empty = { length: 0 }
const nothing = {
  corruptions: empty,
  disagreements: empty,
  surplus: empty,
  unused: empty,
  messages: empty,
}

t.test('sound extents', async t => {
  t.match(inspected(sparse.bytes, sparseLayout), {
    ...nothing,
    totals: { allocated: 6, fragmented: 3, endBytes: sparse.bytes.length },
  })
  t.match(inspected(cowd.bytes, layoutOf(cowd.bytes)), {
    ...nothing,
    totals: { allocated: 5, fragmented: 2, endBytes: cowd.bytes.length },
  })
  for (const more of [{ hasRedundant: false }, { leavesOutTables: true }, { isUnclean: true }]) {
    const { bytes } = buildExtent({ ...SPARSE, ...more })
    t.match(inspected(bytes, layoutOf(bytes)), nothing, JSON.stringify(more))
  }
  const { bytes } = buildExtent({ ...SPARSE, grains: new Map() })
  t.match(inspected(bytes, layoutOf(bytes)), { ...nothing, totals: { allocated: 0 } })
})

interface Case {
  readonly title: string
  readonly pokes: readonly Poke[]
  /** Sectors more or fewer at the end. */
  readonly grow?: number
  readonly isUnclean?: boolean
  readonly finds: Partial<Found>
  readonly says?: RegExp
}

const at = (bytes: Buffer, place: number) => bytes.readUInt32LE(place)
const end = sparse.bytes.length / SECTOR
const { entryAt, redundantEntryAt, directoryAt, redundantDirectoryAt } = sparse
const grainAt = (grain: number) => at(sparse.bytes, entryAt(grain))
const both = (grain: number, value: number): Poke[] => [
  [entryAt(grain), 4, value],
  [redundantEntryAt(grain), 4, value],
]
const tables = [sparse.redundantTableAt(0), sparse.tableAt(0)] as const

const CASES: readonly Case[] = [
  {
    title: 'a grain beyond the end',
    pokes: both(3, end),
    finds: { corruptions: [entryAt(3)] },
    says: /grain at 12288 of the extent's disk names a grain at \d+ of the file, beyond the end/,
  },
  {
    title: 'a grain that is cut off',
    pokes: both(3, end - 1),
    finds: { corruptions: [entryAt(159), entryAt(3)].sort((a, b) => a - b) },
    says: /of the file, which the end of it cuts off/,
  },
  { title: 'the last grain, without what the disk has not of it', pokes: [], grow: -3, finds: {} },
  { title: 'one sector less', pokes: [], grow: -4, finds: { corruptions: [entryAt(159)] } },
  {
    title: 'a grain over the header',
    pokes: both(3, 2 ** 32 - 1),
    finds: { corruptions: [entryAt(3)] },
  },
  { title: 'a grain over the descriptor', pokes: both(3, 2), finds: { corruptions: [entryAt(3)] } },
  {
    title: 'a grain over a directory',
    pokes: both(3, directoryAt / SECTOR),
    finds: { corruptions: [entryAt(3)] },
  },
  {
    title: 'a grain over a table',
    pokes: both(3, sparse.tableAt(3) / SECTOR - 7),
    finds: { corruptions: [entryAt(3)] },
    says: /where another one or a table is/,
  },
  {
    title: 'one grain twice',
    pokes: both(3, grainAt(0)),
    finds: { corruptions: [entryAt(3)] },
  },
  {
    title: 'grains that overlap by a sector',
    pokes: both(3, grainAt(1) + 7),
    finds: { corruptions: [entryAt(3), entryAt(7)] },
  },
  {
    title: 'a table beyond the end',
    pokes: [[directoryAt + 4 * 8, 4, end]],
    finds: { corruptions: [directoryAt + 4 * 8] },
    says: /names a table at \d+, beyond the end of the file/,
  },
  {
    title: 'one table twice',
    pokes: [[directoryAt + 4 * 5, 4, sparse.tableAt(0) / SECTOR]],
    finds: { corruptions: [directoryAt + 4 * 5] },
    says: /^the grain directory names a table at \d+, where another one or a directory is$/,
  },
  {
    title: 'a redundant table over a first one',
    pokes: [[redundantDirectoryAt + 4 * 5, 4, sparse.tableAt(0) / SECTOR]],
    finds: { corruptions: [redundantDirectoryAt + 4 * 5] },
    says: /^the redundant grain directory names/,
  },
  {
    title: 'a redundant directory that names the first tables',
    pokes: [[redundantDirectoryAt, 4, sparse.tableAt(0) / SECTOR]],
    finds: {},
  },
  {
    title: 'a lost grain',
    pokes: both(1, 0),
    finds: { unused: [[sparse.placeOf(1), 8 * SECTOR]] },
  },
  {
    title: 'lost grains at the end, and a part of one',
    pokes: [...both(100, 0), ...both(159, 1)],
    grow: 5,
    finds: { unused: [[sparse.placeOf(100), 21 * SECTOR]] },
  },
  { title: 'less than a grain past the end', pokes: [], grow: 7, finds: {} },
  {
    title: 'a redundant table that is older than a written grain',
    pokes: [[redundantEntryAt(1), 4, 0]],
    finds: { disagreements: [[...tables, false]] },
    says: /is older than the first one, at \d+, in 1 entry/,
  },
  {
    title: 'a redundant table that is older than a zeroed grain',
    pokes: [[entryAt(1), 4, 1]],
    finds: { disagreements: [[...tables, false]], unused: [[sparse.placeOf(1), 8 * SECTOR]] },
  },
  {
    title: 'a redundant entry that cannot be',
    pokes: [[redundantEntryAt(1), 4, end]],
    finds: { disagreements: [[...tables, false]] },
  },
  {
    title: 'a redundant table that contradicts',
    pokes: [[redundantEntryAt(1), 4, grainAt(0)]],
    finds: { disagreements: [[...tables, true]] },
    says: /contradicts the first one, at \d+, in 1 entry/,
  },
  {
    title: 'what only a redundant table names',
    pokes: [[entryAt(1), 4, 0]],
    finds: { disagreements: [[...tables, true]], unused: [[sparse.placeOf(1), 8 * SECTOR]] },
  },
  {
    title: 'what only a redundant table names, after a crash',
    pokes: [[entryAt(1), 4, 0]],
    isUnclean: true,
    finds: { disagreements: [[...tables, false]], unused: [[sparse.placeOf(1), 8 * SECTOR]] },
  },
  {
    title: 'a table that only the redundant directory names',
    pokes: [[directoryAt + 4 * 25, 4, 0]],
    finds: {
      corruptions: [redundantDirectoryAt + 4 * 25],
      unused: [[sparse.placeOf(100), 8 * SECTOR]],
    },
    says: /names a table at \d+ that is in use, and the first directory none/,
  },
  {
    title: 'the same after a crash',
    pokes: [[directoryAt + 4 * 25, 4, 0]],
    isUnclean: true,
    finds: {
      surplus: [redundantDirectoryAt + 4 * 25],
      unused: [[sparse.placeOf(100), 8 * SECTOR]],
    },
  },
  {
    title: 'an empty table that only the redundant directory names',
    pokes: [[directoryAt + 4 * 3, 4, 0]],
    finds: {},
  },
  {
    title: 'no redundant table',
    pokes: [[redundantDirectoryAt, 4, 0]],
    finds: {},
  },
]

function resized(bytes: Buffer, sectors: number): Buffer {
  const more = Buffer.alloc(Math.max(0, sectors) * SECTOR)
  return Buffer.concat([bytes, more]).subarray(0, bytes.length + sectors * SECTOR)
}

for (const { title, pokes, grow = 0, isUnclean = false, finds, says = /^/ } of CASES) {
  t.test(title, async t => {
    const bytes = resized(poked(sparse.bytes, pokes), grow)
    const layout = { ...sparseLayout, isUnclean }
    const { messages, totals, ...found } = inspected(bytes, layout)
    const { totals: none, ...clean } = NONE
    t.strictSame(found, { ...clean, ...finds })
    t.match(messages.join('\n'), says)
  })
}

t.test('regions', async t => {
  const first = { ...sparseLayout, redundantDirectoryAt: sparseLayout.directoryAt }
  t.match(
    inspected(sparse.bytes, first),
    { corruptions: empty, disagreements: empty },
    'one for both',
  )
  const over = { ...sparseLayout, redundantDirectoryAt: 5 * SECTOR }
  t.match(inspected(sparse.bytes, over), { messages: [/redundant .* lies over the descriptor/] })
  const behind = { ...sparseLayout, redundantDirectoryAt: sparse.bytes.length }
  t.match(inspected(sparse.bytes, behind), { corruptions: [sparse.bytes.length] })
  const lost = { ...sparseLayout, directoryAt: sparse.bytes.length }
  const { messages, totals } = inspected(sparse.bytes, lost)
  t.match(messages, [/^the grain directory lies beyond the end of the file$/])
  t.equal(totals, undefined, 'nothing is walked')
})

t.test('COWD', async t => {
  const find = (pokes: Poke[], grow = 0) => {
    const bytes = resized(poked(cowd.bytes, pokes), grow)
    return inspected(bytes, layoutOf(cowd.bytes))
  }
  t.match(find([[cowd.entryAt(4), 4, 0]]), { unused: [[cowd.placeOf(4), SECTOR]] })
  t.match(find([], 100), nothing, 'the file is ahead of what is used')
  const free = at(cowd.bytes, 28)
  t.match(find([[28, 4, free - 1]]), {
    corruptions: [28],
    messages: [/the next grain is to go to sector \d+, and data lie up to \d+/],
  })
  t.match(find([[28, 4, free + 100]], 200), { unused: [[free * SECTOR, 100 * SECTOR]] })
  for (const [bytes, isTold] of [
    [3, true],
    [3 * SECTOR, true],
    [3 * SECTOR, false],
  ] as const) {
    const grains = new Map([[0, Buffer.alloc(bytes, 'x')]])
    const cut = buildCowd({ sectors: 4096, grains, grainSectors: 8 })
    const inFile = cut.bytes.length / SECTOR
    const whole = isTold ? cut.bytes : poked(cut.bytes, [[28, 4, inFile]])
    t.match(inspected(whole, layoutOf(whole)), {
      corruptions: [isTold ? cut.entryAt(0) : 28],
      totals: { endBytes: cut.placeOf(0) + 8 * SECTOR },
    })
  }
  t.match(find([[cowd.directoryEntryAt(2), 4, 3]]), { corruptions: [cowd.directoryEntryAt(2)] })
})

t.test('what the sink throws ends it', async t => {
  const store = new MemoryStore('x.vmdk', poked(sparse.bytes, both(3, 2)))
  const corruption = () => {
    throw new Error('enough')
  }
  const other = () => {
    throw new Error('and more')
  }
  const sink = { corruption, disagreement: other, unused: other }
  t.throws(() => inspectGrains(store, sparseLayout, sink), /enough/)
})

/** Extents to damage, and the places of their entries. */
const VICTIMS: { bytes: Buffer; entries: number[] }[] = [
  victim(sparse, 160, 40, 4),
  victim(
    buildExtent({ ...SPARSE, hasRedundant: false, hasZeroGrains: false, grains: spread(2) }),
    160,
    40,
    4,
  ),
  victim(
    buildExtent({ ...SPARSE, isUnclean: true, leavesOutTables: true, grains: spread(3) }),
    20,
    5,
    4,
  ),
  victim(
    buildExtent({
      capacitySectors: 300,
      grainSectors: 1,
      tableEntries: 128,
      grains: new Map([...Array(200).keys()].map(i => [i, data(i, 1)])),
    }),
    300,
    3,
    128,
  ),
  cowdVictim(cowd, [0, 1, 4, 5000, 5001]),
  cowdVictim(
    buildCowd({
      sectors: 4096 * 16,
      grainSectors: 8,
      grains: new Map([0, 1, 2, 9].map(i => [i, noise(4096, i)])),
    }),
    [0, 1, 2, 9],
  ),
]

function spread(step: number): Map<number, Grain> {
  return new Map([...Array(20).keys()].map(i => [i * step, data(i, 8)]))
}

function victim(built: BuiltExtent, grains: number, count: number, perTable: number) {
  const entries: number[] = []
  for (let i = 0; i < count; i++) {
    entries.push(built.directoryAt + i * 4)
    if (built.redundantDirectoryAt) entries.push(built.redundantDirectoryAt + i * 4)
  }
  for (let grain = 0; grain < grains; grain++) {
    if (!built.tableAt(Math.floor(grain / perTable))) continue
    entries.push(built.entryAt(grain))
    if (built.redundantDirectoryAt) entries.push(built.redundantEntryAt(grain))
  }
  return { bytes: built.bytes, entries }
}

function cowdVictim({ bytes, directoryEntryAt, entryAt }: BuiltCowd, grains: number[]) {
  const near = grains.flatMap(grain => [entryAt(grain), entryAt(grain) + 40])
  return { bytes, entries: [28, ...[0, 1, 2, 3].map(directoryEntryAt), ...near] }
}

/** An entry's number, and what it becomes: a number, or what another entry says and a bit. */
const damage = fc.tuple(
  fc.nat(),
  fc.oneof(
    fc.constantFrom(0, 1, 2, 3, 2 ** 32 - 1, 2 ** 31),
    fc.nat({ max: 2000 }),
    fc.record({ like: fc.nat(), plus: fc.integer({ min: -9, max: 9 }) }),
  ),
)
const samples = fc.record({
  which: fc.nat({ max: VICTIMS.length - 1 }),
  damages: fc.array(damage, { minLength: 1, maxLength: 8 }),
  grow: fc.constantFrom(0, 0, 0, 40, -1, -9, -40),
  isUnclean: fc.boolean(),
  windowBytes: fc.constantFrom(undefined, 4, 8, 12, 64, 1024),
})

t.test('damaged extents, against the model', async t => {
  const seen = { corruptions: 0, disagreements: 0, unused: 0, surplus: 0 }
  const runs = await holds(samples, 8000, sample => {
    const { bytes: sound, entries } = VICTIMS[sample.which] as (typeof VICTIMS)[number]
    const layout = { ...layoutOf(sound), isUnclean: sample.isUnclean }
    const damaged = Buffer.from(sound)
    for (const [which, value] of sample.damages) {
      const place = entries[which % entries.length] as number
      const said =
        typeof value === 'number'
          ? value
          : at(damaged, entries[value.like % entries.length] as number) + value.plus
      damaged.writeUInt32LE(said >>> 0, place)
    }
    const bytes = resized(damaged, sample.grow)
    const { messages, ...found } = inspected(bytes, layout, sample.windowBytes)
    assert.deepEqual(found, modelled(bytes, layout))
    for (const kind of Object.keys(seen) as (keyof typeof seen)[]) seen[kind] += found[kind].length
  })
  t.ok(runs >= 200, `${runs} runs`)
  t.ok(
    Object.values(seen).every(times => times > 10),
    JSON.stringify(seen),
  )
})

t.test('16 million entries', async t => {
  const file = join(tempFolder(t), 'large.vmdk')
  const fd = openSync(file, 'w+')
  t.teardown(() => closeSync(fd))
  const [entries, perTable, grain] = [2 ** 24, 512, 128]
  const tableSectors = entries / 128
  const directorySectors = entries / perTable / 128
  const front = Math.ceil((directorySectors + tableSectors + 1) / grain) * grain
  const directory = Uint32Array.from(
    { length: entries / perTable },
    (_, i) => 1 + directorySectors + i * 4,
  )
  // Every other pair of neighbours has changed places.
  const words = Uint32Array.from({ length: entries }, (_, i) => front + (i ^ ((i & 2) / 2)) * grain)
  writeSync(fd, Buffer.from(directory.buffer), 0, directory.byteLength, SECTOR)
  writeSync(fd, Buffer.from(words.buffer), 0, words.byteLength, (1 + directorySectors) * SECTOR)
  const sizeBytes = (front + entries * grain) * SECTOR
  ftruncateSync(fd, sizeBytes)
  const layout: GrainLayout = {
    ...sparseLayout,
    capacityBytes: entries * grain * SECTOR,
    grainBytes: grain * SECTOR,
    tableEntries: perTable,
    directoryAt: SECTOR,
    directoryEntries: directory.length,
    redundantDirectoryAt: undefined,
    reserved: [{ offset: 0, bytes: SECTOR }],
  }
  const before = process.resourceUsage().maxRSS * 1024
  let totals: GrainTotals | undefined
  inspectGrains(new FileStore(file, fd, sizeBytes), layout, {
    corruption: (_, message) => t.fail(message()),
    disagreement: (_at, _from, _isContradiction, message) => t.fail(message()),
    unused: (at, bytes) => t.ok(at + bytes <= front * SECTOR),
    grains: found => {
      totals = found
    },
  })
  t.match(totals, { allocated: entries, endBytes: sizeBytes })
  const growth = process.resourceUsage().maxRSS * 1024 - before
  t.ok(growth < 64 * 2 ** 20, `${growth} bytes more`)
})
