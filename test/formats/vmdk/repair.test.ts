/** Repairs of VMDK images: which bytes change and which stay, how the disk reads, and power cuts. */
import { strict as assert } from 'node:assert'
import fc from 'fast-check'
import t from 'tap'
import { ImageError } from '../../../src/errors.js'
import type { RepairResult } from '../../../src/formats/check/report.js'
import { checkVmdk } from '../../../src/formats/vmdk/check.js'
import { CowdDriver, readCowdHeader } from '../../../src/formats/vmdk/cowd.js'
import type { ExtentLayout } from '../../../src/formats/vmdk/open.js'
import { type RepairedExtent, repairVmdk } from '../../../src/formats/vmdk/repair.js'
import { SparseDriver } from '../../../src/formats/vmdk/sparse-driver.js'
import { readSparseHeader } from '../../../src/formats/vmdk/sparse-header.js'
import type { Store, WritableStore } from '../../../src/io/store.js'
import { buildCowd } from '../../fixtures/cowd-builder.js'
import { noise } from '../../fixtures/model.js'
import { buildExtent, type Grain, HEADER_AT, packed } from '../../fixtures/vmdk-builder.js'
import { readAt } from '../../support/image.js'
import { holds } from '../../support/property.js'
import { type Journal, MemoryStore, RecordingStore, WrappedStore } from '../../support/stores.js'
import { harshParts, overRaw, type Poke, poked } from './grains.js'

const SECTOR = 512
const K = 1024

type Layout = Extract<ExtentLayout, { kind: 'sparse' | 'cowd' }>

const layoutOf = (store: Store): Layout => {
  const magic = Buffer.alloc(4)
  store.read(magic, 0, 4, 0)
  return magic.toString() === 'COWD'
    ? { kind: 'cowd', header: readCowdHeader(store) }
    : { kind: 'sparse', header: readSparseHeader(store) }
}

function extentOf(store: WritableStore, more: Partial<RepairedExtent> = {}): RepairedExtent {
  const layout = layoutOf(store)
  const sizeBytes = layout.header.capacityBytes
  return { sizeBytes, store, layout, obstacle: undefined, ...more }
}

/** What each grain of the disk reads as; undefined where it cannot be read. */
function disk(store: Store): (Buffer | undefined)[] {
  const layout = layoutOf(store)
  const parts = harshParts(store)
  const view = overRaw(
    layout.kind === 'sparse'
      ? new SparseDriver(parts, layout.header)
      : new CowdDriver(parts, layout.header),
  )
  return grainsOf(view, layout)
}

function grainsOf(view: ReturnType<typeof overRaw>, layout: Layout): (Buffer | undefined)[] {
  const { capacityBytes, grainBytes } = layout.header
  const grains: (Buffer | undefined)[] = []
  for (let at = 0; at < capacityBytes; at += grainBytes) {
    try {
      grains.push(readAt(view, at, Math.min(grainBytes, capacityBytes - at)))
    } catch (error) {
      if (!(error instanceof ImageError)) throw error
      grains.push(undefined)
    }
  }
  return grains
}

/** What each grain reads as by the tables of one directory alone: first the first ones, then the others. */
function eachDisk(store: Store): (Buffer | undefined)[][] {
  const layout = layoutOf(store)
  if (layout.kind !== 'sparse') return []
  const { directoryAt, redundantDirectoryAt = directoryAt } = layout.header
  return [directoryAt, redundantDirectoryAt].map(at => {
    const alone = { directoryAt: at, redundantDirectoryAt: undefined, readsBoth: false }
    const header = { ...layout.header, ...alone }
    return grainsOf(overRaw(new SparseDriver(harshParts(store), header)), layout)
  })
}

/** Whatever could be read reads as before; what only one of the tables says may come back. */
function assertSame(
  before: (Buffer | undefined)[],
  store: Store,
  others: (Buffer | undefined)[][] = [],
): void {
  disk(store).forEach((grain, i) => {
    const old = before[i]
    const allowed = [old, ...others.map(disk => disk[i])]
    assert(!old || allowed.some(each => each && grain?.equals(each)), `grain ${i} reads otherwise`)
  })
}

function repaired(bytes: Buffer, what: 'leaks' | 'all', more: Partial<RepairedExtent> = {}) {
  const store = new MemoryStore('/x/disk.vmdk', bytes)
  const before = disk(store)
  const others = eachDisk(store)
  const result = repairVmdk([extentOf(store, more)], what)
  assertSame(before, store, others)
  return { ...result, store, said: said(result) }
}

const said = ({ changes }: RepairResult): string[] =>
  changes.map(({ kind, at, message }) => `${kind} at ${at}: ${message}`)

const SOUND = { corruptions: 0, leaks: 0 }

const data = (seed: number): Grain => ({ kind: 'data', bytes: noise(4 * K, seed) })
const SPARSE = {
  capacitySectors: 1600,
  grainSectors: 8,
  tableEntries: 128,
  hasZeroGrains: true,
  version: 2,
  grains: new Map<number, Grain>([
    [0, data(1)],
    [1, data(2)],
    [2, data(3)],
    [3, { kind: 'zero' }],
    [150, data(4)],
  ]),
}
const sparse = buildExtent(SPARSE)
const { entryAt, redundantEntryAt, placeOf } = sparse
const both = (grain: number, value: number): Poke[] => [
  [entryAt(grain), 4, value],
  [redundantEntryAt(grain), 4, value],
]
const OPEN: Poke = [HEADER_AT.unclean, 1, 1]
const end = sparse.bytes.length / SECTOR

t.test('a sound extent', async t => {
  for (const what of ['leaks', 'all'] as const) {
    const { store, before, after, changes } = repaired(sparse.bytes, what)
    t.equal(before, after)
    t.same(changes, [])
    t.ok(store.bytes().equals(sparse.bytes))
  }
})

t.test('a redundant table that lags', async t => {
  const { store, after, said } = repaired(
    poked(sparse.bytes, [[redundantEntryAt(1), 4, 0]]),
    'leaks',
  )
  t.match(after, SOUND)
  t.match(said, [/^fix at \d+: the redundant table is what the first one is, at \d+$/])
  t.ok(store.bytes().equals(sparse.bytes))
})

t.test('space', async t => {
  const inside = repaired(poked(sparse.bytes, both(1, 0)), 'leaks')
  t.match(inside, { before: { leaks: 1 }, after: SOUND })
  t.same(inside.said, [`fix at ${placeOf(1)}: 4096 bytes that nothing uses are a hole`])
  t.equal(inside.store.sizeBytes, sparse.bytes.length)
  t.equal(inside.store.nextData(placeOf(1)), placeOf(2))
  const atEnd = repaired(poked(sparse.bytes, both(150, 0)), 'leaks')
  t.match(atEnd.after, SOUND)
  t.same(atEnd.said, [`fix at ${placeOf(150)}: 4096 bytes that nothing uses are cut off`])
  t.equal(atEnd.store.sizeBytes, placeOf(150))
  class Full extends WrappedStore {
    override punch(): boolean {
      return false
    }
  }
  const store = new Full(new MemoryStore('x', poked(sparse.bytes, both(1, 0))))
  const kept = repairVmdk([extentOf(store)], 'leaks')
  t.match(said(kept), [/^error at \d+: 4096 bytes .* stay: the file system makes no holes$/])
  t.match(kept.after, { leaks: 1 })
  const device = repaired(poked(sparse.bytes, both(150, 0)), 'leaks', { isDevice: true })
  t.equal(device.store.sizeBytes, sparse.bytes.length)
})

t.test('the mark that it is open', async t => {
  const { store, before, after, said } = repaired(poked(sparse.bytes, [OPEN]), 'leaks')
  t.match(before.findings, [{ kind: 'notice' }])
  t.same(after.findings, [])
  t.match(said, [/^fix at 72: it is marked as closed cleanly$/])
  t.ok(store.bytes().equals(sparse.bytes))
  const damaged = repaired(poked(sparse.bytes, [OPEN, ...both(5, end)]), 'all')
  t.match(damaged.after, { corruptions: 1 })
  t.equal(damaged.store.bytes()[HEADER_AT.unclean], 1, 'it stays where damage is left')
})

t.test('a damaged entry', async t => {
  const bytes = poked(sparse.bytes, [[entryAt(1), 4, end]])
  const leaks = repaired(bytes, 'leaks')
  t.ok(leaks.store.bytes().equals(bytes), 'it is none of a leak')
  t.equal(leaks.before, leaks.after)
  const all = repaired(bytes, 'all')
  t.match(all, { before: { corruptions: 2 }, after: SOUND })
  t.ok(all.store.bytes().equals(sparse.bytes))
  t.match(all.said, [/^fix at \d+: the damaged entry is what the redundant one is$/])
  const zeros: Poke[] = [
    [entryAt(150), 4, end],
    [redundantEntryAt(150), 4, 1],
  ]
  t.match(repaired(poked(sparse.bytes, zeros), 'leaks').after, { corruptions: 2 })
  t.match(repaired(poked(sparse.bytes, zeros), 'all').after, { corruptions: 0 })
  const none = repaired(poked(sparse.bytes, both(1, end)), 'all')
  t.match(none, { before: { corruptions: 1 }, after: { corruptions: 1 }, changesLeftOut: 0 })
  const shared: Poke[] = [
    [entryAt(1), 4, end],
    [redundantEntryAt(1), 4, placeOf(0) / SECTOR],
    [redundantEntryAt(150), 4, 0],
  ]
  const taken = repaired(poked(sparse.bytes, shared), 'all')
  t.equal(taken.before, taken.after, 'which of the two is right nobody knows')
  t.match(taken.said.at(-1), /^error at 0: space is kept: /)
})

t.test('redundant tables that contradict', async t => {
  const poke: Poke = [redundantEntryAt(1), 4, placeOf(2) / SECTOR]
  const bytes = poked(sparse.bytes, [poke])
  const leaks = repaired(bytes, 'leaks')
  t.match(leaks.after.corruptions, 1)
  t.ok(leaks.store.bytes().equals(bytes))
  const all = repaired(bytes, 'all')
  t.match(all.after.corruptions, 0, 'what it names is another grain of the first table')
  t.ok(all.store.bytes().equals(sparse.bytes))
  const damaged: Poke[] = [poke, ...both(5, end)]
  t.match(repaired(poked(sparse.bytes, damaged), 'all').after, { corruptions: 2 })
})

t.test('a grain that only the redundant table names comes back', async t => {
  const lost = poked(sparse.bytes, [[entryAt(1), 4, 0]])
  t.ok(repaired(lost, 'leaks').store.bytes().equals(lost), 'it is none of a leak')
  const all = repaired(lost, 'all')
  t.match(all.after, SOUND)
  t.ok(all.store.bytes().equals(sparse.bytes))
  const crashed = repaired(poked(lost, [OPEN]), 'leaks')
  t.match(crashed.after, SOUND)
  t.ok(crashed.store.bytes().equals(sparse.bytes), 'also after a crash')
})

t.test('two tables that name different grains, which belong to nothing else', async t => {
  const longer = Buffer.concat([sparse.bytes, noise(4 * K, 7)])
  const bytes = poked(longer, [[redundantEntryAt(1), 4, end]])
  const { store, said, after } = repaired(bytes, 'all')
  t.match(after, { corruptions: 1 })
  t.ok(store.bytes().equals(bytes), 'neither is given up')
  t.match(said.at(-1), /^error at 0: 1 entry of its two grain tables names different things/)
  t.ok(repaired(store.bytes(), 'leaks').store.bytes().equals(bytes))
})

t.test('tables and directories that read as zeros', async t => {
  const { directoryAt, redundantDirectoryAt, tableAt, redundantTableAt } = sparse
  const places = [directoryAt, redundantDirectoryAt, tableAt(0), redundantTableAt(0), tableAt(1)]
  for (const at of places) {
    for (const isUnclean of [false, true]) {
      const bytes = poked(sparse.bytes, isUnclean ? [OPEN] : [])
      bytes.fill(0, at, at + SECTOR)
      const store = new MemoryStore('x', bytes)
      for (const what of ['all', 'leaks', 'all'] as const) repairVmdk([extentOf(store)], what)
      const found = checkVmdk([extentOf(store)])
      t.match(found, SOUND, `${at}`)
      disk(store).forEach((grain, i) => {
        const before = disk(new MemoryStore('x', sparse.bytes))[i]
        if (before && !grain?.equals(before)) t.fail(`grain ${i} is lost, ${at}`)
      })
    }
  }
})

t.test('a table that only the redundant directory names', async t => {
  const lost: Poke = [sparse.directoryAt + 4, 4, 0]
  const crashed = repaired(poked(sparse.bytes, [lost, OPEN]), 'leaks')
  t.match(crashed.after, { corruptions: 0 })
  t.ok(crashed.store.bytes().equals(sparse.bytes))
  const clean = poked(sparse.bytes, [lost])
  t.match(repaired(clean, 'leaks'), { before: { corruptions: 1 }, after: { corruptions: 1 } })
  t.ok(repaired(clean, 'all').store.bytes().equals(sparse.bytes))
})

t.test('a table that is missing', async t => {
  const bytes = poked(sparse.bytes, [
    [sparse.directoryAt + 4, 4, end],
    [sparse.redundantDirectoryAt + 4, 4, end],
    [entryAt(1), 4, end],
    [redundantEntryAt(2), 4, 0],
    OPEN,
  ])
  const { store, said } = repaired(bytes, 'all')
  t.ok(store.bytes().equals(bytes), 'nothing is written')
  t.match(said, [/^error at 0: nothing of it is changed: a table is missing/])
  for (const place of [HEADER_AT.directory, HEADER_AT.redundantDirectory]) {
    const lost = poked(sparse.bytes, [[place, 8, end], [redundantEntryAt(2), 4, 0], OPEN])
    const { store, said } = repaired(lost, 'all')
    t.ok(store.bytes().equals(lost), 'nothing is written')
    t.match(said, [/^error at 0: nothing of it is changed: one of its two grain directories/])
  }
})

t.test('things over each other', async t => {
  const bytes = poked(sparse.bytes, [
    ...both(5, placeOf(1) / SECTOR),
    [redundantEntryAt(1), 4, 0],
    OPEN,
  ])
  const { store, said } = repaired(bytes, 'all')
  t.ok(store.bytes().equals(bytes), 'nothing is written')
  t.match(said, [/^error at 0: nothing of it is changed: things lie over each other/])
})

t.test('a COWD extent', async t => {
  const cowd = buildCowd({
    sectors: 5000,
    grainSectors: 16,
    unclean: 0x100,
    grains: new Map([0, 1, 2].map(i => [i, noise(16 * SECTOR, i)])),
  })
  const lost = poked(cowd.bytes, [[cowd.entryAt(1), 4, 0]])
  const leaks = repaired(lost, 'leaks')
  t.match(leaks, { before: { leaks: 1 }, after: { corruptions: 0, leaks: 1 } })
  t.equal(leaks.store.bytes().readUInt32LE(1648), 0)
  t.same(leaks.store.bytes().subarray(cowd.placeOf(0)), lost.subarray(cowd.placeOf(0)))
  t.match(leaks.said[0], /^error at 0: space is kept: nothing names it, but a lost table/)
  const free = cowd.bytes.readUInt32LE(28)
  const low = poked(cowd.bytes, [[28, 4, free - 1]])
  t.match(repaired(low, 'leaks').after, { corruptions: 1 })
  const all = repaired(low, 'all')
  t.match(all.after, SOUND)
  t.equal(all.store.bytes().readUInt32LE(28), free)
  t.equal(all.store.bytes().readUInt32LE(1648), 0)
  t.match(all.said, [/^fix at 28: the next grain is to go to sector \d+$/, /closed cleanly/])
})

t.test('a COWD extent whose tables name all of its grains gives space back', async t => {
  const cowd = buildCowd({
    sectors: 3 * 16,
    grainSectors: 16,
    grains: new Map([0, 1, 2, 3].map(i => [i, noise(16 * SECTOR, i)])),
  })
  const unnamed = poked(cowd.bytes, [[cowd.entryAt(3), 4, 0]])
  const leaks = repaired(unnamed, 'leaks')
  t.match(leaks, { before: { leaks: 1 }, after: SOUND })
  t.equal(leaks.store.sizeBytes, cowd.bytes.length, 'ESX may have made it longer ahead of time')
  const rest = leaks.store.bytes().subarray(cowd.placeOf(3))
  t.ok(rest.equals(Buffer.alloc(16 * SECTOR)))
})

/** Zeros over `bytes` at `at`. */
const lostAt = (image: Buffer, at: number, bytes: number): Buffer => {
  const lost = Buffer.from(image)
  lost.fill(0, at, at + bytes)
  return lost
}

t.test('a table that reads as zeros may be lost, and nothing of its data is freed', async t => {
  const cowd = buildCowd({
    sectors: 3 * 4096,
    grains: new Map([0, 1, 2, 9, 5000, 5001, 9000].map(i => [i, noise(SECTOR, i)])),
  })
  const large = buildCowd({
    sectors: 5000,
    grainSectors: 16,
    grains: new Map([0, 1, 2].map(i => [i, noise(16 * SECTOR, i)])),
  })
  const largeTable = Math.floor(large.entryAt(0) / SECTOR) * SECTOR
  const single = buildExtent({ ...SPARSE, hasRedundant: false })
  const { directoryAt } = readSparseHeader(new MemoryStore('x', single.bytes))
  const whole = readSparseHeader(new MemoryStore('x', sparse.bytes))
  const directories = [whole.directoryAt, whole.redundantDirectoryAt as number]
  const pair = directories.reduce((bytes, at) => lostAt(bytes, at, 4), sparse.bytes)
  const tables = [0, 1].reduce(
    (bytes, i) =>
      [entryAt(128 * i), redundantEntryAt(128 * i)].reduce((b, at) => lostAt(b, at, SECTOR), bytes),
    sparse.bytes,
  )
  const cases: [title: string, bytes: Buffer, isSure: boolean][] = [
    ['COWD, its directory', lostAt(large.bytes, large.directoryEntryAt(0), SECTOR), true],
    ['COWD, a table', lostAt(large.bytes, largeTable, 4096 * 4), true],
    ['COWD, the grains of a sector of a table', lostAt(large.bytes, largeTable, 8), false],
    [
      'COWD, open, its directory',
      poked(lostAt(large.bytes, large.directoryEntryAt(0), SECTOR), [[1648, 4, 1]]),
      false,
    ],
    ['COWD, one of three tables', lostAt(cowd.bytes, cowd.directoryEntryAt(0), 4), false],
    ['hosted, one directory, all of it', lostAt(single.bytes, directoryAt, SECTOR), true],
    ['hosted, one directory, an entry', lostAt(single.bytes, directoryAt, 4), true],
    ['hosted, one directory, a table', lostAt(single.bytes, single.entryAt(0), SECTOR), false],
    ['hosted, two directories, the same entry of both', pair, true],
    ['hosted, two directories, all tables of both', tables, false],
  ]
  for (const [title, bytes, isSure] of cases) {
    for (const what of ['leaks', 'all'] as const) {
      const store = new MemoryStore('/x/disk.vmdk', bytes)
      const result = repairVmdk([extentOf(store)], what)
      t.ok(result.before.leaks > 0, `${title}: there is space that nothing names`)
      t.equal(result.before.corruptions > 0, isSure, `${title}: whether that is surely damage`)
      if (isSure) {
        const messages = result.before.findings.map(({ message }) => message)
        t.ok(messages.some(message => /grains that no table names/.test(message)))
      }
      t.ok(store.bytes().equals(bytes), `${title}: repair ${what} changes nothing`)
      t.match(said(result).join(), /space is kept/, title)
    }
  }
})

t.test('what two tables of zeros may have named is kept, but not what a crash leaves', async t => {
  const count = 65
  const places = Array.from({ length: count }, (_, i) => 128 + i)
  const extent = buildExtent({
    capacitySectors: 3 * 128 * 8,
    grainSectors: 8,
    tableEntries: 128,
    grains: new Map([0, ...places].map(i => [i, { kind: 'data', bytes: noise(4 * K, i) }])),
  })
  const tables = [extent.entryAt(128), extent.redundantEntryAt(128)]
  for (const left of [0, 1]) {
    // In the second round the tables name one of the grains: what is unnamed is as little as a crash leaves.
    const bytes = tables.reduce(
      (all, at) => lostAt(all, at + 4 * left, SECTOR - 4 * left),
      extent.bytes,
    )
    const store = new MemoryStore('/x/disk.vmdk', Buffer.from(bytes))
    const result = repairVmdk([extentOf(store)], 'all')
    t.equal(result.before.leaks, count - left)
    t.equal(result.after.leaks, left === 0 ? count : 0)
    if (left === 0) t.ok(store.bytes().equals(bytes), 'not a byte has changed')
    t.match(said(result).join(), left === 0 ? /space is kept/ : /cut off/)
  }
})

t.test('extents that are not repaired', async t => {
  const bytes = poked(sparse.bytes, both(1, 0))
  const obstacle = 'it is write-protected'
  const closed = repaired(bytes, 'all', { obstacle })
  t.ok(closed.store.bytes().equals(bytes))
  t.same(closed.said, [`error at 0: ${obstacle}`])
  const stream = buildExtent({
    capacitySectors: 1600,
    grainSectors: 8,
    isCompressed: true,
    isStream: true,
    grains: new Map([[0, packed(noise(4 * K, 1))]]),
  })
  const damaged = poked(stream.bytes, [[stream.entryAt(1), 4, 3]])
  const store = new MemoryStore('x', damaged)
  t.match(said(repairVmdk([extentOf(store)], 'all')), [
    /^error at 0: an extent of this kind is not/,
  ])
  t.ok(store.bytes().equals(damaged))
  const flat = new MemoryStore('/x/flat.vmdk', Buffer.alloc(512))
  const short: RepairedExtent = {
    sizeBytes: 1024,
    store: flat,
    layout: { kind: 'flat', startBytes: 0 },
    obstacle: undefined,
  }
  const all = repairVmdk([extentOf(new MemoryStore('/x/a.vmdk', bytes)), short], 'all')
  t.match(said(all), [/^fix at \d+: a\.vmdk: 4096 bytes/, /^error at 0: flat\.vmdk: an extent of/])
  t.match(all, { before: { corruptions: 1, leaks: 1 }, after: { corruptions: 1, leaks: 0 } })
})

/** Entries: of both directories, and of the tables of both. */
const ENTRIES = [
  ...[0, 1].flatMap(i => [sparse.directoryAt + i * 4, sparse.redundantDirectoryAt + i * 4]),
  ...[0, 1, 2, 3, 4, 5, 127, 128, 150].flatMap(i => [entryAt(i), redundantEntryAt(i)]),
]
const samples = fc.record({
  what: fc.constantFrom('leaks' as const, 'all' as const),
  isUnclean: fc.boolean(),
  grow: fc.constantFrom(0, 0, 4096, 10_000, -4096),
  damages: fc.array(
    fc.tuple(
      fc.nat({ max: ENTRIES.length - 1 }),
      fc.oneof(
        { weight: 3, arbitrary: fc.constantFrom(0, 1, end, end - 8, end + 50) },
        { weight: 1, arbitrary: fc.nat({ max: end }) },
        { weight: 2, arbitrary: fc.constantFrom(...[0, 1, 2, 150].map(i => placeOf(i) / SECTOR)) },
      ),
    ),
    { maxLength: 5 },
  ),
})

t.test('damaged extents, and power cuts while they are repaired', async t => {
  const seen = { changed: 0, mended: 0, cuts: 0, sound: 0 }
  const runs = await holds(samples, 100, ({ what, isUnclean, grow, damages }) => {
    const pokes = damages.map(([which, value]): Poke => [ENTRIES[which] as number, 4, value])
    const bytes = poked(sparse.bytes, isUnclean ? [...pokes, OPEN] : pokes)
    const resized = Buffer.concat([bytes, noise(Math.max(0, grow), 9)])
    const start = new MemoryStore('x', resized.subarray(0, bytes.length + grow))
    const before = disk(start)
    // Tables that no directory names any more may be found again where they were.
    const named = start.clone()
    for (const at of ENTRIES.slice(0, 4)) named.write(sparse.bytes, at, 4, at)
    const others = [...eachDisk(start), ...eachDisk(named)]
    const inner = start.clone()
    const journal: Journal<never> = []
    const store = new RecordingStore(inner, journal, 0)
    const result = repairVmdk([extentOf(store)], what)
    assertSame(before, store, others)
    assert(result.after.corruptions <= result.before.corruptions)
    const isOpen = Buffer.alloc(1)
    store.read(isOpen, 0, 1, HEADER_AT.unclean)
    // Where a contradiction stays the mark does, too.
    const isDone = !result.changes.some(({ kind }) => kind === 'error')
    if (result.after.corruptions > 0) assert.equal(isOpen[0], isUnclean ? 1 : 0)
    else if (isDone) assert.equal(isOpen[0], 0)
    const again = repairVmdk([extentOf(store)], what)
    assert(again.after.corruptions <= result.after.corruptions)
    if (result.changes.length > 0) seen.changed++
    if (result.after.corruptions < result.before.corruptions) seen.mended++
    if (result.after.corruptions + result.after.leaks === 0) seen.sound++
    // Each write may be on the disk without those before it, since the last sync; here in order, and alone.
    const steps = journal.filter(({ kind }) => kind !== 'sync')
    for (let length = 0; length <= steps.length; length++) {
      const cut = start.clone()
      for (const step of steps.slice(0, length)) redo(cut, step)
      assertSame(before, cut, others)
      seen.cuts++
    }
    let synced = start.clone()
    let open: typeof journal = []
    for (const step of journal) {
      if (step.kind !== 'sync') {
        open.push(step)
        const alone = synced.clone()
        redo(alone, step)
        assertSame(before, alone, others)
        const found = checkVmdk([extentOf(alone)])
        assert(found.corruptions <= result.before.corruptions + result.changes.length)
      } else {
        synced = synced.clone()
        for (const each of open) redo(synced, each)
        open = []
      }
    }
    assert.equal(open.length, 0, 'all is synced')
  })
  t.ok(runs >= 100, `${runs} runs`)
  t.ok(
    Object.values(seen).every(times => times > 5),
    JSON.stringify(seen),
  )
})

function redo(store: WritableStore, step: Journal<never>[number]): void {
  if (step.kind === 'write') store.write(step.bytes, 0, step.bytes.length, step.at)
  else if (step.kind === 'punch') store.punch(step.at, step.length)
  else if (step.kind === 'truncate') store.truncate(step.sizeBytes)
}
