/** Checking cow images, and giving back what nothing uses. */
import { closeSync, openSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { checkCow } from '../../../src/formats/cow/check.js'
import { repairCow } from '../../../src/formats/cow/repair.js'
import { WritableFileStore } from '../../../src/io/store.js'
import { LAYOUTS, type Layout } from '../../fixtures/cow-builder.js'
import { noise } from '../../fixtures/model.js'
import { tempFolder } from '../../support/run.js'
import { type MemoryStore, WrappedStore } from '../../support/stores.js'
import { openCow, readCow, SECTOR, sectorsOf, storeOf } from './images.js'

const SIZE = 2051 * SECTOR
const RUNS = [
  [0, 5],
  [400, 100],
  [2050, 1],
] as const
const MARKED = 106

const imageOf = (layout: Layout, sizeBytes = SIZE) =>
  storeOf({ layout, sizeBytes, sectors: sectorsOf(RUNS), backing: 'b' })

/** Puts something into the places of unmarked sectors. */
function litter(store: MemoryStore, dataAt: number, first: number, count: number): void {
  store.write(noise(count * SECTOR, 9), 0, count * SECTOR, dataAt + first * SECTOR)
}

t.test('sound images', t => {
  for (const layout of LAYOUTS) {
    const { store, built } = imageOf(layout)
    const parts: number[] = []
    const found = checkCow(store, { progress: part => parts.push(part) })
    t.match(found, {
      corruptions: 0,
      leaks: 0,
      checkErrors: 0,
      totalClusters: 2051,
      allocatedClusters: MARKED,
      fragmentedClusters: 0,
      compressedClusters: 0,
      imageEndOffset: built.placeOf(2051),
      findings: [],
    })
    t.equal(parts.at(-1), 1)
    t.ok(parts.every((part, i) => part >= (parts[i - 1] ?? 0)))
    t.same(repairCow(store, 'all').changes, [], 'nothing to repair')
    t.ok(store.bytes().equals(built.bytes), 'not a byte has changed')
  }
  t.equal(checkCow(storeOf({ layout: 'qemu-i386', sizeBytes: 0 }).store).totalClusters, 0)
  t.end()
})

t.test('sectors that are lost', t => {
  for (const layout of LAYOUTS) {
    const { store, built } = imageOf(layout)
    // Of 100 in a run 39 are whole, and one is cut off.
    store.truncate(built.placeOf(439) + 100)
    const found = checkCow(store)
    t.match(found, { corruptions: 61 + 1, allocatedClusters: MARKED, leaks: 0 }, layout)
    t.match(found.findings, [
      { kind: 'corruption', at: built.placeOf(439), message: /^sectors 439 to 499 are beyond/ },
      { kind: 'corruption', at: built.placeOf(2050), message: /^sector 2050 is beyond/ },
    ])
    litter(store, built.dataAt, 100, 100)
    const bytes = store.bytes()
    for (const what of ['leaks', 'all'] as const) {
      const { before, after, changes } = repairCow(store, what)
      t.match(before, { corruptions: 62, leaks: /[1-9]/ })
      t.equal(after, before)
      t.match(changes, [{ kind: 'error', message: /what was lost|that were lost stay marked/ }])
      t.ok(store.bytes().equals(bytes), 'not a byte has changed')
    }
    const { disk } = openCow(store)
    t.throws(() => disk.write(Buffer.alloc(SECTOR), 0, SECTOR, 0), { code: 'CORRUPT' })
    t.match(disk.failure, /sector 439 is marked as written and beyond the end of the file/)
    t.ok(store.bytes().equals(bytes), 'and it is not written')
  }
  t.end()
})

t.test('a disk that ends within a sector, and a file that ends with the disk', t => {
  const sizeBytes = SIZE - 100
  const sectors = sectorsOf([[2050, 1]])
  const { store, built } = storeOf({ layout: 'uml-3', sizeBytes, sectors, backing: 'b' })
  store.truncate(built.dataAt + sizeBytes)
  t.match(checkCow(store), { corruptions: 0, totalClusters: 2051, allocatedClusters: 1 })
  store.truncate(built.dataAt + sizeBytes - 1)
  t.equal(checkCow(store).corruptions, 1)
  t.end()
})

t.test('bits after the last sector', t => {
  const { store, built } = imageOf('qemu-x86-64')
  const at = built.bitmapAt + 256
  store.write(Buffer.of(0b0010_0100), 0, 1, at)
  const found = checkCow(store)
  t.match(found, { corruptions: 0, leaks: 0, findings: [{ kind: 'notice', at }] })
  t.equal(found.allocatedClusters, MARKED)
  t.end()
})

t.test('space that nothing uses', t => {
  for (const layout of LAYOUTS) {
    const { store, built } = imageOf(layout)
    litter(store, built.dataAt, 500, 1) // within the block of a sector that is marked
    litter(store, built.dataAt, 1003, 50)
    const disk = readCow(store)
    const blocks = (at: number) => Math.ceil(at / 4096) * 4096
    const first = Math.floor(built.placeOf(1003) / 4096) * 4096
    const leaks = (blocks(built.placeOf(1053)) - first) / SECTOR
    const found = checkCow(store)
    t.match(found, { corruptions: 0, leaks }, layout)
    t.match(found.findings, [
      { kind: 'leak', message: /nothing uses \d+ bytes from sector 500 to 2049/ },
    ])

    const before = store.allocatedBytes
    const { after, changes } = repairCow(store, 'leaks')
    t.match(after, { corruptions: 0, leaks: 0 })
    t.match(changes, [{ kind: 'fix', message: /bytes that nothing uses are a hole/ }])
    t.equal(store.allocatedBytes, before - leaks * SECTOR)
    t.ok(readCow(store).equals(disk), 'the disk is the same')
  }
  t.end()
})

t.test('file systems that make no holes', t => {
  const { store, built } = imageOf('uml-3')
  litter(store, built.dataAt, 1000, 64)
  class Solid extends WrappedStore {
    override punch(): boolean {
      return false
    }
  }
  const { after, changes } = repairCow(new Solid(store), 'leaks')
  t.ok(after.leaks > 0)
  t.match(changes, [{ kind: 'error', message: /the file system makes no holes/ }])
  t.end()
})

t.test('an image that was copied without its holes', t => {
  const { built } = imageOf('uml-3')
  const file = join(tempFolder(t), 'disk.cow')
  writeFileSync(file, built.bytes)
  const fd = openSync(file, 'r+')
  t.teardown(() => closeSync(fd))
  const size = new BigInt64Array(new SharedArrayBuffer(8))
  size[0] = BigInt(built.bytes.length)
  const store = new WritableFileStore(file, fd, size)
  const disk = readCow(store)
  const before = statSync(file).blocks
  const { before: found, after } = repairCow(store, 'all')
  t.ok(found.leaks > 1500, `${found.leaks} leaks`)
  t.match(after, { corruptions: 0, leaks: 0 })
  t.ok(statSync(file).blocks < before / 4, `${statSync(file).blocks} of ${before} blocks`)
  t.ok(readCow(store).equals(disk))
  t.end()
})

t.test('warnings about the header', t => {
  const { store } = storeOf({ layout: 'uml-2', sizeBytes: (488 * 8 + 3) * SECTOR, backing: 'b' })
  t.match(checkCow(store).findings, [
    { kind: 'notice', message: /its last 3 sectors have no place/ },
  ])
  t.end()
})
