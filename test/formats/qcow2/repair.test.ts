/** Repairs: what they change, what they leave, and what a power cut may leave of them. */
import fc from 'fast-check'
import t from 'tap'
import { ImageError } from '../../../src/errors.js'
import type { RepairResult } from '../../../src/formats/check/report.js'
import { checkQcow2 } from '../../../src/formats/qcow2/check.js'
import { INCOMPATIBLE, readHeader } from '../../../src/formats/qcow2/header.js'
import { rebuildRefcounts, repairQcow2 } from '../../../src/formats/qcow2/repair.js'
import { readSnapshots } from '../../../src/formats/qcow2/snapshots.js'
import { noise } from '../../fixtures/model.js'
import { buildImage, type Cluster, type ImageSpec } from '../../fixtures/qcow2-builder.js'
import { holds } from '../../support/property.js'
import { type Journal, MemoryStore, RecordingStore } from '../../support/stores.js'
import { buildBitmapImage } from './bitmap-image.js'
import { BASES, type Damaged, damaged, damagedBytes, liesOverTables } from './damage.js'

const COPIED = 1n << 63n
const data = (seed: number): Cluster => ({ kind: 'data', bytes: noise(512, seed) })

const SPEC: ImageSpec = {
  clusterBits: 9,
  sizeBytes: 512 * 1024,
  clusters: new Map(Array.from({ length: 600 }, (_, i) => [i, data(i)] as const)),
}
const built = (spec: ImageSpec = SPEC) => {
  const image = buildImage(spec)
  return { image, bytes: image.bytes() }
}
const isClean = (store: MemoryStore): boolean => {
  const { corruptions, leaks, checkErrors } = checkQcow2(store)
  return corruptions + leaks + checkErrors === 0
}

t.test('a sound image is left as it is', async t => {
  for (const { bytes } of BASES) {
    const store = new MemoryStore('', bytes)
    const journal: Journal<never> = []
    repairQcow2(new RecordingStore(store, journal, 0), 'all')
    // One that lacks the sizes of its snapshots' disks is version 2 here.
    t.same(journal, [])
  }
})

t.test('leaks', async t => {
  const { image, bytes } = built()
  for (const i of [5, 6, 7, 400]) bytes.writeBigUInt64BE(0n, image.l2EntryAt(i))
  const store = new MemoryStore('', bytes)
  const { before, after, changes } = repairQcow2(store, 'leaks')
  t.match(before, { leaks: 4, corruptions: 0 })
  t.match(after, { leaks: 0, corruptions: 0 })
  t.equal(changes.length, 2, 'neighbours are one change')
  t.match(changes[0], { kind: 'fix', message: /^3 clusters from here on: count 0 now, not 1$/ })
})

t.test('a count too high by one keeps the COPIED flag', async t => {
  const { image, bytes } = built()
  const blockAt = Number(bytes.readBigUInt64BE(image.refcountTableAt))
  const cluster = image.placeOf(SPEC.clusters?.get(3) as Cluster) / 512
  bytes.writeUInt16BE(2, blockAt + cluster * 2)
  const store = new MemoryStore('', bytes)
  t.match(repairQcow2(store, 'leaks').after, { leaks: 0, corruptions: 0 })
})

t.test('leaks are given back, corruptions wait for "all"', async t => {
  const { image, bytes } = built()
  bytes.writeBigUInt64BE(0n, image.l2EntryAt(5))
  bytes.writeBigUInt64BE(bytes.readBigUInt64BE(image.l2EntryAt(8)), image.l2EntryAt(9))
  const store = new MemoryStore('', bytes)
  t.match(repairQcow2(store, 'leaks').after, { leaks: 0, corruptions: 1 })
  t.match(repairQcow2(store, 'all').after, { leaks: 0, corruptions: 0 })
})

t.test('every refcount block lost, and the table', async t => {
  for (const refcountOrder of [0, 1, 2, 3, 4, 5, 6]) {
    const { image, bytes } = built({ ...SPEC, refcountOrder })
    bytes.fill(0, image.refcountTableAt, image.refcountTableAt + 512)
    const store = new MemoryStore('', bytes)
    const { before, after } = repairQcow2(store, 'all')
    t.ok(before.corruptions > 600)
    t.match(after, { leaks: 0, corruptions: 0, checkErrors: 0 }, `2^${refcountOrder}`)
    t.same(store.bytes().subarray(0, 8), bytes.subarray(0, 8))
  }
})

t.test('a table that is too short for the file gets longer', async t => {
  const { image, bytes } = built()
  const file = Buffer.concat([bytes, noise(512, 1)])
  const store = new MemoryStore('', file)
  // A table of 512 bytes has 64 blocks of 256 counts: one entry past them.
  const far = 64 * 256 * 512
  store.truncate(far + 512)
  const entry = Buffer.alloc(8)
  entry.writeBigUInt64BE(COPIED | BigInt(far))
  store.write(entry, 0, 8, image.l2EntryAt(0))
  t.match(repairQcow2(store, 'all').after, { leaks: 0, corruptions: 0, checkErrors: 0 })
  t.ok(readHeader(store).refcountTableClusters > 1)
})

t.test('damage without a known fix is reported and left', async t => {
  const { image, bytes } = built()
  bytes.writeBigUInt64BE(COPIED | (1n << 40n), image.l1At + 8)
  const store = new MemoryStore('', bytes)
  const { before, after, changes } = repairQcow2(store, 'all')
  t.ok(before.leaks > 60)
  t.equal(after.leaks, before.leaks, 'a table that is lost may use them')
  t.ok(after.corruptions > 0)
  const errors = changes.filter(({ kind }) => kind === 'error')
  t.match(errors, [{ message: /leaks are kept/ }])
  const entry = store.bytes().readBigUInt64BE(image.l1At + 8)
  t.equal(entry & ~COPIED, 1n << 40n)
  t.equal(readHeader(store).incompatible & INCOMPATIBLE.dirty, 0n)
})

t.test('new counts are not put where entries point', async t => {
  const { image, bytes } = built()
  bytes.writeBigUInt64BE(COPIED | BigInt(bytes.length), image.l2EntryAt(0))
  bytes.fill(0, image.refcountTableAt, image.refcountTableAt + 512)
  const store = new MemoryStore('', bytes)
  t.throws(() => repairQcow2(store, 'all'), { name: 'ImageError', message: /past the end/ })
  t.equal(readHeader(store).incompatible, 0n, 'it is not left dirty')
})

t.test('nor where the L1 table of a snapshot reaches', async t => {
  const { image, bytes } = built({ ...SPEC, snapshots: [{ clusters: new Map([[3, data(3)]]) }] })
  const { snapshotsAt } = image
  const l1At = Number(bytes.readBigUInt64BE(snapshotsAt))
  bytes.writeUInt32BE((bytes.length - l1At) / 8 + 200, snapshotsAt + 8)
  bytes.fill(0, image.refcountTableAt, image.refcountTableAt + 512)
  const store = new MemoryStore('', bytes)
  t.throws(() => repairQcow2(store, 'all'), { name: 'ImageError', message: /past the end/ })
  t.equal(store.sizeBytes, bytes.length)
})

t.test('nor where the entry of a bitmap points: they take free clusters', async t => {
  const bitmap = { name: 'b', flags: 2, granularityBits: 9, bits: [1] }
  const { bytes, tableAt } = buildBitmapImage({
    clusterBits: 9,
    sizeBytes: 512 * 1024,
    bitmaps: [bitmap],
  })
  bytes.writeBigUInt64BE(BigInt(bytes.length), tableAt[0])
  const table = readHeader(new MemoryStore('', bytes)).refcountTableOffset
  bytes.fill(0, table, table + 512)
  const store = new MemoryStore('', bytes)
  const { after } = repairQcow2(store, 'all')
  t.match(after, { corruptions: 1, findings: [{ message: /bitmap table names a cluster/ }] })
  t.equal(store.sizeBytes, bytes.length)
})

t.test('nor is a new snapshot table', async t => {
  const snapshots = [{ name: 'old', extraBytes: 0, clusters: new Map([[3, data(3)]]) }]
  const { image, bytes } = built({ ...SPEC, snapshots })
  bytes.writeBigUInt64BE(COPIED | BigInt(bytes.length + 512), image.l2EntryAt(0))
  const store = new MemoryStore('', bytes)
  const { changes } = repairQcow2(store, 'all')
  t.ok(changes.some(({ message }) => message.includes('there is no room for a new one')))
  t.equal(store.sizeBytes, bytes.length)
  t.equal(readHeader(store).snapshotsOffset, image.snapshotsAt)
})

t.test('the marks', async t => {
  const marks = INCOMPATIBLE.dirty | INCOMPATIBLE.corrupt
  const store = new MemoryStore('', built({ ...SPEC, incompatible: marks }).bytes)
  repairQcow2(store, 'leaks')
  t.equal(readHeader(store).incompatible, marks)
  repairQcow2(store, 'all')
  t.equal(readHeader(store).incompatible, 0n)
})

t.test('snapshots without the size of their disk', async t => {
  const snapshots = [
    { name: 'old', extraBytes: 0, vmStateBytes: 700, clusters: new Map([[3, data(3)]]) },
    { name: 'young', extraBytes: 24, clusters: new Map([[4, data(4)]]) },
  ]
  const store = new MemoryStore('', built({ ...SPEC, snapshots }).bytes)
  t.match(checkQcow2(store), { corruptions: 1, leaks: 0 })
  const before = readSnapshots(store, readHeader(store))
  t.match(repairQcow2(store, 'all').after, { corruptions: 0, leaks: 0 })
  t.same(readSnapshots(store, readHeader(store)), before)
})

t.test('rebuilding the counts alone', async t => {
  const { image, bytes } = built({ ...SPEC, incompatible: INCOMPATIBLE.dirty })
  bytes.writeBigUInt64BE(0n, image.l2EntryAt(5))
  const blockAt = Number(bytes.readBigUInt64BE(image.refcountTableAt + 8))
  bytes.writeUInt16BE(0, blockAt + 2)
  const store = new MemoryStore('', bytes)
  t.same(rebuildRefcounts(store), { raised: 1, lowered: 1, newBlocks: 0 })
  t.ok(isClean(store))
  t.equal(readHeader(store).incompatible, INCOMPATIBLE.dirty, 'the caller clears it')

  bytes.writeBigUInt64BE(COPIED | (1n << 40n), image.l1At + 8)
  const damagedStore = new MemoryStore('', bytes)
  t.throws(() => rebuildRefcounts(damagedStore), { name: 'ImageError', code: 'CORRUPT' })
  t.same(damagedStore.bytes(), bytes)
})

/** Runs what may say that an image is beyond it. */
function tolerant(run: () => void): void {
  try {
    run()
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
  }
}

/** Repairs an image: it must be no worse then, and leave nothing for a second repair. */
function repairOf(sample: Damaged): RepairResult {
  const store = new MemoryStore('', damagedBytes(sample))
  const result = repairQcow2(store, 'all')
  const { before, after, changes } = result
  const settled = store.bytes()
  const again = repairQcow2(store, 'all')
  if (liesOverTables(before, sample)) return result
  // A flag that must not be written may not agree with a count that is right now.
  const isWhole = changes.every(({ kind }) => kind === 'fix')
  if (isWhole && after.corruptions > before.corruptions) throw new Error('it got worse')
  if (again.after.corruptions !== after.corruptions) throw new Error('it is not settled')
  // What lost snapshots may own is kept, until somebody repairs it once more.
  const keepsLeaks = changes.some(({ message }) => message.includes('snapshots that are lost'))
  if (again.after.leaks !== after.leaks && !keepsLeaks) throw new Error('leaks are not settled')
  if (after.corruptions === 0 && !keepsLeaks && !store.bytes().equals(settled))
    throw new Error('it changed')
  return result
}

t.test(
  'damaged images: it ends, nothing gets worse, and a second repair has nothing to do',
  async t => {
    const runs = await holds(damaged, 100, sample =>
      tolerant(() => {
        repairOf(sample)
      }),
    )
    t.ok(runs >= 100, `${runs} images`)
  },
)

t.test('a table is repaired that an entry of another one lay over', async t => {
  const changes = [
    { table: 3, at: 54, value: 114, isBit: false },
    { table: 9, at: 70, value: 253, isBit: false },
    { table: 0, at: 0, value: 0, isBit: false },
  ]
  const { changes: made } = repairOf({ base: 0, changes, cut: 0 })
  const messages = made.map(({ message }) => message)
  t.ok(messages.includes('an L2 entry that reads as zeros no longer names a cluster at 29184'))
  t.ok(messages.includes('reserved bits of an L1 entry are cleared'))
  t.notOk(messages.some(message => message.includes('shares its cluster')))
})

t.test('tables that are in the file only after the repair are repaired, too', async t => {
  const changes = [
    { table: 53, at: 81, value: 235, isBit: true },
    { table: 79, at: 20, value: 179, isBit: false },
  ]
  const sample = { base: 0, changes, cut: 287 }
  t.not(damagedBytes(sample).length % 4096, 0)
  const { changes: made } = repairOf(sample)
  t.ok(made.some(({ message }) => message.endsWith('no longer names a cluster at 57344')))
})

const cut = fc.record({ sample: damaged, at: fc.nat(1000), kept: fc.nat(2 ** 31 - 1) })

t.test('a power cut: another repair completes the work', async t => {
  const runs = await holds(cut, 100, ({ sample, at, kept }) =>
    tolerant(() => afterPowerCut(sample, at, kept)),
  )
  t.ok(runs >= 100, `${runs} images`)
})

/** @param kept which writes since the last sync survive, a bit each */
function afterPowerCut(sample: Damaged, at: number, kept: number): void {
  const bytes = damagedBytes(sample)
  const journal: Journal<never> = []
  const whole = new MemoryStore('', bytes)
  const { before, after } = repairQcow2(new RecordingStore(whole, journal, 0), 'all')
  if (after.corruptions > 0 || liesOverTables(before, sample)) return
  const end = Math.floor((journal.length * at) / 1000)
  const synced = journal.slice(0, end).findLastIndex(({ kind }) => kind === 'sync')
  const store = new MemoryStore('', bytes)
  journal.slice(0, end).forEach((entry, i) => {
    if (i > synced && ((kept >> (i % 31)) & 1) === 0) return
    if (entry.kind === 'write') store.write(entry.bytes, 0, entry.bytes.length, entry.at)
    if (entry.kind === 'truncate') store.truncate(entry.sizeBytes)
  })
  const left = checkQcow2(store)
  if (left.checkErrors > 0 && before.checkErrors === 0) throw new Error('it can be checked no more')
  const { after: repaired } = repairQcow2(store, 'all')
  if (repaired.corruptions > 0 || repaired.leaks > after.leaks) throw new Error('it is not clean')
}
