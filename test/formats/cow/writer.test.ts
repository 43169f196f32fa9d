/** Writing cow images: what scenarios at random do not ask for. */
import t from 'tap'
import { noise } from '../../fixtures/model.js'
import { LAYOUTS } from '../../fixtures/cow-builder.js'
import { type Journal, RecordingStore, WrappedStore } from '../../support/stores.js'
import { openCow, readCow, SECTOR, sectorsOf, storeOf } from './images.js'

const SIZE = 4000 * SECTOR

t.test('writes to the file, and their order', t => {
  for (const layout of LAYOUTS) {
    const sectors = sectorsOf([[8, 8]])
    const { store, built } = storeOf({ layout, sizeBytes: SIZE, sectors, backing: 'b' })
    const journal: Journal<never> = []
    const { disk } = openCow(new RecordingStore(store, journal, 0), noise(SIZE, 5))
    disk.write(noise(2 * SECTOR, 1), 0, 2 * SECTOR, 9 * SECTOR)
    t.match(journal, [{ kind: 'write', at: built.placeOf(9) }], 'in place')
    journal.length = 0
    disk.flush()
    t.same(journal, [{ kind: 'sync', file: 0 }], 'and no bit changes')

    journal.length = 0
    disk.write(noise(100, 2), 0, 100, 100 * SECTOR + 50)
    const filled = journal.filter(each => each.kind === 'write' && each.at >= built.dataAt)
    t.match(filled, [{ at: built.placeOf(100) }], 'one write of a whole sector')
    t.equal((filled[0] as { bytes: Buffer }).bytes.length, SECTOR)
    journal.length = 0
    disk.flush()
    t.match(journal, [{ kind: 'sync' }, { kind: 'write' }, { kind: 'sync' }])
    const { at, bytes } = journal[1] as { at: number; bytes: Buffer }
    t.ok(at >= built.bitmapAt && at + bytes.length <= built.dataAt, 'nothing but bits')
    const bit = built.bitOf(100)
    t.equal(bytes[bit.at - at], bit.mask)
    disk.close()
  }
  t.end()
})

t.test('zeros over a parent are holes', t => {
  const parent = noise(SIZE, 5)
  const { store, built } = storeOf({ layout: 'qemu-x86-64', sizeBytes: SIZE, backing: 'b' })
  // Where a crash has left something.
  store.write(noise(64 * 1024, 7), 0, 64 * 1024, built.placeOf(800))
  const { disk } = openCow(store, parent)
  const before = store.allocatedBytes
  disk.zero(256 * SECTOR, 2048 * SECTOR)
  disk.write(Buffer.alloc(8192), 0, 8192, 4096)
  disk.close()
  t.ok(store.allocatedBytes < before, 'what was there is given back, and nothing taken')
  const expected = Buffer.from(parent)
  expected.fill(0, 256 * SECTOR, 2304 * SECTOR)
  expected.fill(0, 4096, 4096 + 8192)
  t.ok(readCow(store, parent).equals(expected))
  t.end()
})

t.test('zeros without a parent take nothing', t => {
  const { store, built } = storeOf({ layout: 'qemu-x86-64', sizeBytes: SIZE })
  const { disk } = openCow(store)
  disk.zero(0, SIZE)
  disk.write(Buffer.alloc(65536), 0, 65536, 0)
  disk.close()
  t.ok(store.bytes().equals(built.bytes))
  t.end()
})

t.test('zeros where the file system makes no holes', t => {
  class Solid extends WrappedStore {
    override punch(): boolean {
      return false
    }
  }
  const parent = noise(SIZE, 5)
  const sectors = sectorsOf([[16, 80]])
  const { store, built } = storeOf({ layout: 'uml-3', sizeBytes: SIZE, sectors, backing: 'b' })
  store.write(noise(65536, 7), 0, 65536, built.placeOf(800))
  const { disk } = openCow(new Solid(store), parent)
  disk.zero(0, SIZE - 4096)
  disk.close()
  const expected = Buffer.from(parent)
  expected.fill(0, 0, SIZE - 4096)
  t.ok(readCow(store, parent).equals(expected))
  t.end()
})

t.test('sectors of UML of version 2 that have no bit', t => {
  const sectors = 488 * 8 + 3
  const sizeBytes = sectors * SECTOR
  const parent = noise(sizeBytes, 5)
  const { store, built } = storeOf({ layout: 'uml-2', sizeBytes, backing: 'b' })
  const { disk, read } = openCow(store, parent)
  const last = sizeBytes - 3 * SECTOR
  t.throws(() => disk.write(noise(512, 1), 0, 512, last), { code: 'READ_ONLY' })
  t.throws(() => disk.zero(last - 4096, 4096 + 1536), { code: 'READ_ONLY' })
  t.equal(disk.failure, '', 'all else is written on')
  disk.write(noise(512, 1), 0, 512, last - 512)
  t.ok(read(last, 1536).equals(parent.subarray(last)), 'they are the layer below’s')
  disk.close()
  t.ok(
    store
      .bytes()
      .subarray(built.dataAt, built.dataAt + 64)
      .equals(Buffer.alloc(64)),
  )
  t.end()
})

t.test('sectors of UML of version 2 whose bits it does not count', t => {
  const sizeBytes = 403 * SECTOR
  const parent = noise(sizeBytes, 5)
  const { store, built } = storeOf({ layout: 'uml-2', sizeBytes, backing: 'b' })
  const { disk } = openCow(store, parent)
  disk.write(noise(SECTOR, 1), 0, SECTOR, 402 * SECTOR)
  disk.close()
  const { at, mask } = built.bitOf(402)
  t.equal(store.bytes()[at], mask)
  t.ok(
    readCow(store, parent)
      .subarray(402 * SECTOR)
      .equals(noise(SECTOR, 1)),
  )
  t.end()
})

t.test('it does not grow', t => {
  const { store } = storeOf({ layout: 'qemu-x86-64', sizeBytes: SIZE })
  const { disk } = openCow(store)
  t.throws(() => disk.grow(SIZE + 512), { code: 'REFUSED' })
  t.equal(disk.sizeBytes, SIZE)
  t.end()
})

t.test('more slices than memory has room for', t => {
  // A slice has the bits of 16 MiB: 1100 of them, each with one sector.
  const step = 4096 * 8 * SECTOR
  const count = 1100
  const { store } = storeOf({ layout: 'qemu-x86-64', sizeBytes: count * step })
  const { disk } = openCow(store)
  for (let i = 0; i < count; i++) disk.write(noise(SECTOR, i + 1), 0, SECTOR, i * step)
  disk.close()
  const again = openCow(store)
  let wrong = 0
  for (let i = 0; i < count; i++) {
    if (!again.read(i * step, SECTOR).equals(noise(SECTOR, i + 1))) wrong++
  }
  t.equal(wrong, 0)
  t.end()
})

t.test('long runs of zeros over a parent', t => {
  const sizeBytes = 2 ** 30
  const { store } = storeOf({ layout: 'qemu-i386', sizeBytes, backing: 'b' })
  const parent = noise(4096, 1)
  const { disk, read } = openCow(store, parent)
  const before = store.allocatedBytes
  disk.zero(0, sizeBytes)
  disk.close()
  t.ok(read(0, 4096).equals(Buffer.alloc(4096)))
  t.ok(store.allocatedBytes - before <= 2 ** 18 + 8192, 'its bits are all that it takes')
  t.ok(openCow(store, parent).read(0, 4096).equals(Buffer.alloc(4096)))
  t.end()
})
