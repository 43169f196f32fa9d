/** Checks extents of VMDK images of every kind: the findings, and how severe they are. */
import t from 'tap'
import type { CheckResult } from '../../../src/formats/check/report.js'
import { type CheckedExtent, checkVmdk } from '../../../src/formats/vmdk/check.js'
import { PackedInspection } from '../../../src/formats/vmdk/check/packed-inspection.js'
import { inspectSesparse } from '../../../src/formats/vmdk/check/sesparse-inspection.js'
import { readCowdHeader } from '../../../src/formats/vmdk/cowd.js'
import type { GrainSink } from '../../../src/formats/vmdk/check/grain-sink.js'
import { grainLayout } from '../../../src/formats/vmdk/layout.js'
import { readSesparseHeader } from '../../../src/formats/vmdk/sesparse.js'
import { readSparseHeader } from '../../../src/formats/vmdk/sparse-header.js'
import { buildCowd } from '../../fixtures/cowd-builder.js'
import { noise, prose } from '../../fixtures/model.js'
import { buildSesparse, type SesparseGrain } from '../../fixtures/sesparse-builder.js'
import { buildExtent, type Grain, HEADER_AT, packed } from '../../fixtures/vmdk-builder.js'
import { MemoryStore } from '../../support/stores.js'
import { type Poke, poked } from './grains.js'

const SECTOR = 512
const K = 1024

function extentOf(bytes: Buffer, name = 'disk.vmdk'): CheckedExtent {
  const store = new MemoryStore(`/x/${name}`, bytes)
  const magic = bytes.toString('latin1', 0, 4)
  const layout =
    magic === 'KDMV'
      ? { kind: 'sparse' as const, header: readSparseHeader(store) }
      : magic === 'COWD'
        ? { kind: 'cowd' as const, header: readCowdHeader(store) }
        : { kind: 'sesparse' as const, header: readSesparseHeader(store) }
  return { sizeBytes: layout.header.capacityBytes, store, layout }
}

const checked = (...extents: CheckedExtent[]): CheckResult => checkVmdk(extents)
const said = ({ findings }: CheckResult): string[] =>
  findings.map(({ kind, at, message }) => `${kind} at ${at}: ${message}`)

// An empty list would match any.
const CLEAN = { corruptions: 0, leaks: 0, checkErrors: 0, findings: { length: 0 } }

const data = (seed: number): Grain => ({ kind: 'data', bytes: noise(4 * K, seed) })
const SPARSE = {
  capacitySectors: 1600,
  grainSectors: 8,
  tableEntries: 128,
  grains: new Map([
    [0, data(1)],
    [1, data(2)],
    [150, data(3)],
  ]),
}
const sparse = buildExtent(SPARSE)

t.test('a sparse extent', async t => {
  t.match(checked(extentOf(sparse.bytes)), {
    ...CLEAN,
    totalClusters: 200,
    allocatedClusters: 3,
    fragmentedClusters: 0,
    compressedClusters: 0,
    imageEndOffset: sparse.bytes.length,
  })
})

const both = (grain: number, value: number): Poke[] => [
  [sparse.entryAt(grain), 4, value],
  [sparse.redundantEntryAt(grain), 4, value],
]

t.test('leaks', async t => {
  const lost = poked(sparse.bytes, [...both(0, 0), ...both(1, 0)])
  t.match(checked(extentOf(lost)), { corruptions: 0, leaks: 2 })
  t.match(said(checked(extentOf(lost))), [
    `leak at ${sparse.placeOf(0)}: nothing uses ${8 * K} bytes`,
  ])
  const hole = Buffer.from(lost)
  hole.fill(0, sparse.placeOf(0), sparse.placeOf(0) + 4 * K)
  t.match(checked(extentOf(hole)), { leaks: 1 }, 'half of it is a hole')
  hole.fill(0, sparse.placeOf(1), sparse.placeOf(1) + 4 * K)
  t.match(checked(extentOf(hole)), CLEAN, 'all of it is')
  const end = poked(sparse.bytes, both(150, 0))
  t.match(checked(extentOf(end)), { leaks: 1 })
  t.match(checked({ ...extentOf(end), isDevice: true }), CLEAN, 'the rest of a device')
  const longer = Buffer.concat([sparse.bytes, noise(4 * K + 100, 4)])
  t.match(checked(extentOf(longer)), { leaks: 2 }, 'a part of a grain counts')
})

t.test('redundant tables', async t => {
  const lags = checked(extentOf(poked(sparse.bytes, [[sparse.redundantEntryAt(1), 4, 0]])))
  t.match(lags, { corruptions: 0, leaks: 1 })
  t.match(said(lags), [/^leak at \d+: a redundant table is older/])
  const other = sparse.placeOf(0) / SECTOR
  const against = checked(extentOf(poked(sparse.bytes, [[sparse.redundantEntryAt(1), 4, other]])))
  t.match(against, { corruptions: 1, leaks: 0 })
  t.match(said(against), [/^corruption at \d+: a redundant table contradicts/])
})

t.test('what a header says', async t => {
  const unclean = checked(extentOf(poked(sparse.bytes, [[HEADER_AT.unclean, 1, 1]])))
  t.match(unclean, { corruptions: 0, leaks: 0 })
  t.match(said(unclean), [/^notice at 0: it was not closed cleanly/])
  const lost = extentOf(poked(sparse.bytes, [[HEADER_AT.redundantDirectory, 8, 2 ** 40]]))
  t.match(said(checked(lost)), [/^notice at 0: its redundant grain directory cannot be used$/])
  t.match(checked(lost), { corruptions: 0 })
  const first = extentOf(poked(sparse.bytes, [[HEADER_AT.directory, 8, 2 ** 40]]))
  t.match(checked(first), { corruptions: 1 })
  t.match(said(checked(first)).join('\n'), /corruption at 56: its grain directory is damaged, and/)
})

t.test('a COWD extent', async t => {
  const { bytes, entryAt } = buildCowd({
    sectors: 5000,
    grains: new Map([
      [0, noise(512, 1)],
      [4999, noise(512, 2)],
    ]),
  })
  t.match(checked(extentOf(bytes)), { ...CLEAN, totalClusters: 5000, allocatedClusters: 2 })
  t.match(checked(extentOf(poked(bytes, [[entryAt(0), 4, 1]]))), { corruptions: 1 })
  const lost = extentOf(poked(bytes, [[entryAt(0), 4, 0]]))
  t.match(checked(lost), CLEAN, 'no block of the file system would become free')
})

const stream = buildExtent({
  capacitySectors: 1600,
  grainSectors: 16,
  isCompressed: true,
  isStream: true,
  grains: new Map<number, Grain>([
    [0, packed(prose(8 * K, 1))],
    [1, packed(noise(8 * K, 2))],
    [90, packed(prose(8 * K, 3))],
  ]),
})
const placeOf = (grain: number) => stream.placeOf(grain)

t.test('a stream', async t => {
  t.match(checked(extentOf(stream.bytes)), {
    ...CLEAN,
    totalClusters: 100,
    allocatedClusters: 3,
    compressedClusters: 3,
  })
  const cases: { title: string; pokes: Poke[]; says: RegExp }[] = [
    {
      title: 'another marker',
      pokes: [[placeOf(0), 8, 16]],
      says: new RegExp(
        `^corruption at ${stream.entryAt(0)}: the entry of the grain at 0 of the extent's disk names a grain at ${placeOf(0)} of the file, where that of sector 16 is$`,
      ),
    },
    { title: 'no grain', pokes: [[placeOf(1) + 8, 4, 0]], says: /where no grain is$/ },
    {
      title: 'too many bytes',
      pokes: [[placeOf(1) + 8, 4, 16 * K + 1]],
      says: /which has 16385 bytes, too many$/,
    },
    {
      title: 'over the next one',
      pokes: [[placeOf(0) + 8, 4, placeOf(1) - placeOf(0)]],
      says: new RegExp(`^corruption at ${stream.entryAt(1)}: .* where another one or a table is$`),
    },
    {
      title: 'beyond the end',
      pokes: [[stream.entryAt(1), 4, stream.bytes.length / SECTOR]],
      says: /, beyond the end of it$/,
    },
    {
      title: 'a stream over the tables',
      pokes: [[placeOf(90) + 8, 4, 3 * SECTOR]],
      says: /where another one or a table is$/,
    },
  ]
  for (const { title, pokes, says } of cases) {
    const result = checked(extentOf(poked(stream.bytes, pokes)))
    t.match(result, { corruptions: 1, leaks: 0 }, title)
    t.match(said(result), [says], title)
  }
  const front = buildExtent({
    capacitySectors: 1600,
    grainSectors: 16,
    isCompressed: true,
    hasRedundant: false,
    grains: new Map<number, Grain>([[0, packed(noise(8 * K, 1))]]),
  })
  const marker = front.placeOf(0)
  const cut = Buffer.from(front.bytes.subarray(0, marker + 8 * K))
  t.match(said(checked(extentOf(cut))), [/which the end of it cuts off$/])
  t.match(said(checked(extentOf(cut.subarray(0, marker + 10)))), [/the end of it cuts off$/])
})

t.test('a stream, window by window', async t => {
  // The first grain's stream reaches into the second one's.
  const bytes = poked(stream.bytes, [[placeOf(0) + 8, 4, placeOf(1) - placeOf(0)]])
  const store = new MemoryStore('x', bytes)
  const header = readSparseHeader(store)
  const layout = grainLayout({ kind: 'sparse', header: { ...header, isCompressed: false } })
  if (!layout) throw new Error('it has no grains')
  const found = [4, 8, 64, undefined].map(windowBytes => {
    const messages: string[] = []
    const sink: GrainSink = {
      corruption: (at, message) => messages.push(`${at} ${message()}`),
      disagreement: (at, _from, _isContradiction, message) => messages.push(`${at} ${message()}`),
      unused: () => {},
      grains: totals => messages.push(JSON.stringify(totals)),
    }
    const options = windowBytes === undefined ? {} : { windowBytes }
    new PackedInspection(store, layout, sink, options).run()
    return messages
  })
  t.equal(found[0]?.length, 2)
  for (const messages of found) t.same(messages, found[0])
})

const sesparse = buildSesparse({
  sectors: 70_000,
  grains: new Map<number, SesparseGrain>([
    [0, { kind: 'data', bytes: noise(4 * K, 1) }],
    [1, { kind: 'unmapped' }],
    [2, { kind: 'zero' }],
    [3, { kind: 'data', bytes: noise(4 * K, 2) }],
    [5000, { kind: 'data', bytes: noise(4 * K, 3) }],
    [8500, { kind: 'data', bytes: noise(1000, 4) }],
  ]),
})

t.test('a seSparse extent', async t => {
  t.match(checked(extentOf(sesparse.bytes)), {
    ...CLEAN,
    totalClusters: 8750,
    allocatedClusters: 4,
    fragmentedClusters: 0,
    imageEndOffset: sesparse.placeOf(8500) + 4 * K,
  })
  const grain = 0x3000000000000000n
  const entry = sesparse.entryAt(4)
  const cases: { title: string; poke: Poke; says: RegExp; finds?: number }[] = [
    {
      title: 'no table',
      poke: [sesparse.directoryEntryAt(1), 8, 0x2000000000000001n],
      says: /^corruption at \d+: the directory entry 1 is 0x2000000000000001, which names no grain table$/,
    },
    {
      title: 'a table that is not there',
      poke: [sesparse.directoryEntryAt(1), 8, 0x1000000000000003n],
      says: /the directory entry 1 names the grain table 3 of 3$/,
    },
    {
      title: 'one table twice',
      poke: [sesparse.directoryEntryAt(1), 8, 0x1000000000000000n],
      says: /the directory entry 1 names the grain table 0, as another one does$/,
    },
    { title: 'no meaning', poke: [entry, 8, 5n], says: /entry 0x0000000000000005 means nothing$/ },
    { title: 'one grain twice', poke: [entry, 8, grain], says: /another one names, too$/ },
    {
      title: 'past the end',
      poke: [entry, 8, grain | (4n << 48n)],
      says: /beyond the end of the file$/,
    },
    {
      title: 'past the end by the low bits of its number alone',
      poke: [entry, 8, grain | (0x100n << 48n)],
      says: /beyond the end of the file$/,
    },
    {
      title: 'far past the end',
      poke: [entry, 8, grain | 0xffffffffffffn],
      says: /beyond the end of the file$/,
    },
  ]
  for (const { title, poke, says } of cases) {
    const result = checked(extentOf(poked(sesparse.bytes, [poke])))
    t.match(result, { corruptions: 1 }, title)
    t.match(said(result), [says], title)
  }
  const { store, layout } = extentOf(
    poked(sesparse.bytes, [[sesparse.entryAt(5), 8, grain | (2n << 48n)]]),
  )
  if (!store || layout.kind !== 'sesparse') throw new Error('no store')
  const found: string[] = []
  for (const windowBytes of [4, 1024]) {
    inspectSesparse(
      store,
      layout.header,
      {
        corruption: (at, message) => found.push(`${at} ${message()}`),
        grains: ({ allocated }) => found.push(String(allocated)),
      },
      { windowBytes },
    )
  }
  t.same(found.slice(0, 2), found.slice(2), 'the same by windows')
})

t.test('several extents', async t => {
  const flat = new MemoryStore('/x/flat.vmdk', noise(10 * SECTOR, 1))
  const part = (startBytes: number, sizeBytes: number): CheckedExtent => ({
    sizeBytes,
    store: flat,
    layout: { kind: 'flat', startBytes },
  })
  t.match(checked(part(0, 5 * SECTOR), part(5 * SECTOR, 5 * SECTOR)), CLEAN)
  const short = checked(part(5 * SECTOR, 6 * SECTOR))
  t.match(said(short), [`corruption at ${10 * SECTOR}: its last 512 bytes are missing`])
  const damaged = extentOf(poked(sparse.bytes, both(1, 0)), 'disk-s001.vmdk')
  const zeros: CheckedExtent = { sizeBytes: 1, store: undefined, layout: { kind: 'zero' } }
  const all = checked(
    damaged,
    zeros,
    part(0, 11 * SECTOR),
    extentOf(sparse.bytes, 'disk-s002.vmdk'),
  )
  t.match(all, { corruptions: 1, leaks: 1, totalClusters: 400, allocatedClusters: 5 })
  t.match(said(all), [
    /^leak at \d+: disk-s001\.vmdk: nothing uses 4096 bytes$/,
    /^corruption at \d+: flat\.vmdk: its last 512 bytes are missing$/,
  ])
  const twice = checked(damaged, damaged)
  t.match(twice, { leaks: 1, totalClusters: 400, allocatedClusters: 2 }, 'a file is checked once')
})

t.test('progress', async t => {
  const parts: number[] = []
  checkVmdk([extentOf(sparse.bytes), extentOf(sesparse.bytes, 'b'), extentOf(stream.bytes, 'c')], {
    progress: part => parts.push(part),
  })
  t.ok(
    parts.every((part, i) => part >= (parts[i - 1] ?? 0) && part <= 1),
    parts.join(' '),
  )
  t.equal(parts.at(-1), 1)
})
