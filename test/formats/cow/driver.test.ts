import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { countAllocated, nextData, nextHole } from '../../../src/image/reading/holes.js'
import { FileStore } from '../../../src/io/store.js'
import { buildCow, type CowSpec, LAYOUTS } from '../../fixtures/cow-builder.js'
import { noise } from '../../fixtures/model.js'
import { dataRuns, readAll, readAt } from '../../support/image.js'
import { holds } from '../../support/property.js'
import { tempFolder } from '../../support/run.js'
import { MemoryStore, WrappedStore } from '../../support/stores.js'
import { extentsOf, thrownBy, wrongReads } from '../vmdk/grains.js'
import { modelOf, SECTOR, sectorsOf, storeOf, viewOf } from './images.js'

const SIZE = 2051 * SECTOR

t.test('runs of all lengths, at all borders', t => {
  const runs = [
    [0, 1],
    [3, 2],
    [7, 1],
    [8, 8],
    [23, 10],
    [64, 64],
    [131, 33],
    [1000, 1000],
    [2049, 2],
  ] as const
  const sectors = sectorsOf(runs)
  const parent = noise(SIZE - 30_000, 99)
  for (const layout of LAYOUTS) {
    const { store, built } = storeOf({ layout, sizeBytes: SIZE, sectors, backing: 'b' })
    for (const below of [undefined, parent]) {
      const view = viewOf(store, below)
      t.same(wrongReads(view, modelOf({ sizeBytes: SIZE, sectors }, below), 8 * SECTOR), [], layout)
    }
    const { driver } = viewOf(store)
    const at = (sector: number) => built.dataAt + sector * SECTOR
    t.same(
      extentsOf(driver, 0, 32 * SECTOR),
      [
        `data 512 at ${at(0)}`,
        'parent 1024',
        `data 1024 at ${at(3)}`,
        'parent 1024',
        `data 4608 at ${at(7)}`,
        'parent 3584',
        `data 4608 at ${at(23)}`,
      ],
      'neighbours are one',
    )
    t.same(extentsOf(driver, 3 * SECTOR + 5, 700), [`data 700 at ${at(3) + 5}`])
  }
  t.end()
})

t.test('any image', async t => {
  const run = fc.tuple(fc.nat(1000), fc.integer({ min: 1, max: 400 }))
  const images = fc.record({
    layout: fc.constantFrom(...LAYOUTS),
    sectors: fc.integer({ min: 1, max: 5000 }),
    odd: fc.constantFrom(0, 0, 1, 511),
    runs: fc.array(run, { maxLength: 12 }),
    parent: fc.option(fc.nat(1200)),
    places: fc.array(fc.tuple(fc.nat(1000), fc.nat(400)), { minLength: 1, maxLength: 6 }),
  })
  const runs = await holds(images, 150, ({ layout, sectors, odd, runs, parent, places }) => {
    const whole = sectors * SECTOR
    const sizeBytes = layout.startsWith('uml-3') ? whole - odd : whole
    const written = sectorsOf(
      runs.map(([from, count]) => {
        const first = Math.min(sectors - 1, Math.floor((from / 1000) * sectors))
        return [first, Math.min(count, sectors - first)]
      }),
    )
    const spec: CowSpec = { layout, sizeBytes, sectors: written, backing: 'b' }
    const { store, built } = storeOf(spec)
    // Sectors without a bit of their own come from the layer below.
    for (const sector of written.keys()) {
      if (built.bitOf(sector).at >= built.dataAt) written.delete(sector)
    }
    const below = parent === null ? undefined : noise(Math.floor((parent / 1000) * sizeBytes), 7)
    const disk = Buffer.alloc(whole)
    modelOf({ sizeBytes: whole, sectors: written }, below).copy(disk)
    const expected = disk.subarray(0, sizeBytes)
    const view = viewOf(store, below)
    if (!readAll(view).equals(expected)) throw new Error('the disk')
    for (const [from, part] of places) {
      const offset = Math.floor((from / 1000) * sizeBytes)
      const length = Math.min(1 + Math.floor((part / 1000) * sizeBytes), sizeBytes - offset)
      if (length < 1) continue
      if (!readAt(view, offset, length).equals(expected.subarray(offset, offset + length))) {
        throw new Error(`${length} bytes at ${offset}`)
      }
    }
    let at = 0
    for (const { start, end } of [...dataRuns(view), { start: sizeBytes, end: sizeBytes }]) {
      if (expected.subarray(at, start).some(byte => byte !== 0)) {
        throw new Error(`bytes of ${at}-${start} are in a hole`)
      }
      at = end
    }
    const allocated = countAllocated(view, Number.MAX_SAFE_INTEGER, 1000)
    if (allocated > sizeBytes) throw new Error(`${allocated} allocated`)
  })
  t.ok(runs >= 50, `${runs} images`)
})

t.test('runs that end where a piece of the bitmap does', t => {
  // The first 4096 bytes of the file hold the bits of this many sectors, the next ones those of 32768 more.
  const border = (4096 - 1056) * 8
  const sizeBytes = (border + 3 * 32768) * SECTOR
  for (const isFirst of [true, false]) {
    const marks = (sector: number) =>
      sector < border || sector >= border + 32768 ? isFirst : !isFirst
    const { store } = storeOf({ layout: 'qemu-x86-64', sizeBytes })
    for (let byte = 0; byte < sizeBytes / SECTOR / 8; byte++) {
      store.write(Buffer.of(marks(byte * 8) ? 0xff : 0), 0, 1, 1056 + byte)
    }
    const { driver } = viewOf(store)
    const kinds = extentsOf(driver, 0, sizeBytes).map(each => each.replace(/ at .*/, ''))
    const [one, other] = isFirst ? ['data', 'parent'] : ['parent', 'data']
    const sizes = [border, 32768, 2 * 32768].map(sectors => sectors * SECTOR)
    t.same(kinds, [`${one} ${sizes[0]}`, `${other} ${sizes[1]}`, `${one} ${sizes[2]}`])
  }
  t.end()
})

t.test('sectors of UML of version 2 that have no bit are the layer below’s', t => {
  // Their bits would be the first byte of the data.
  const sectors = 488 * 8 + 3
  const sizeBytes = sectors * SECTOR
  const all = new Map([[0, Buffer.alloc(SECTOR, 0xff)]])
  const { store, built } = storeOf({ layout: 'uml-2', sizeBytes, sectors: all, backing: 'b' })
  t.equal(built.bitOf(sectors - 1).at, built.dataAt)
  const parent = noise(sizeBytes, 3)
  t.ok(readAll(viewOf(store, parent)).equals(modelOf({ sizeBytes, sectors: all }, parent)))
  t.end()
})

t.test('sectors beyond the end of the file are damage, never zeros', t => {
  const sectors = sectorsOf([[10, 20]])
  for (const layout of LAYOUTS) {
    const { built } = storeOf({ layout, sizeBytes: SIZE, sectors, backing: 'b' })
    const cut = built.placeOf(15) + 100
    const view = viewOf(new MemoryStore('disk.cow', built.bytes.subarray(0, cut)))
    t.ok(readAt(view, 10 * SECTOR, 5 * SECTOR + 100).length > 0)
    for (const [offset, length] of [
      [15 * SECTOR, SECTOR],
      [15 * SECTOR + 99, 2],
      [29 * SECTOR, 1],
    ] as const) {
      const { code, message } = thrownBy(() => readAt(view, offset, length))
      t.match({ code, message }, { code: 'CORRUPT', message: /beyond the end of the file/ })
    }
    t.ok(readAt(view, 30 * SECTOR, 4096).equals(Buffer.alloc(4096)), 'what is not marked')
  }
  t.end()
})

/** A store that counts the bytes read. */
class CountingStore extends WrappedStore {
  reads = 0
  bytes = 0

  override read(target: Buffer, start: number, length: number, at: number): number {
    this.reads++
    this.bytes += length
    return super.read(target, start, length, at)
  }
}

t.test('a bitmap that is cut off while the image is open', t => {
  const sizeBytes = 2 ** 29
  const { store } = storeOf({ layout: 'qemu-x86-64', sizeBytes, sectors: sectorsOf([[2, 1]]) })
  const view = viewOf(store)
  t.equal(view.driver.lookup(8 * SECTOR, 2 ** 28).length, 2 ** 28)
  const again = viewOf(store)
  store.truncate(40_000)
  t.equal(thrownBy(() => readAt(again, 2 ** 29 - 512, 512)).code, 'CORRUPT')
  const { kind, length } = again.driver.lookup(8 * SECTOR, 2 ** 29 - 8 * SECTOR)
  t.equal(kind, 'parent')
  t.ok(length <= (40_000 - 1056) * 8 * SECTOR, 'what is not there is not passed over')
  t.end()
})

t.test('a disk of 1 TiB, most of it unallocated', t => {
  const file = join(tempFolder(t), 'disk.cow')
  const fd = openSync(file, 'w+')
  t.teardown(() => closeSync(fd))
  const sizeBytes = 2 ** 40
  const { bytes, bitmapAt } = buildCow({ layout: 'qemu-x86-64', sizeBytes: 0 })
  bytes.writeBigUInt64BE(BigInt(sizeBytes), 1040)
  writeSync(fd, bytes, 0, bytes.length, 0)
  const dataAt = Math.ceil((bitmapAt + 2 ** 28) / 512) * 512
  const far = 2 ** 39 + 5 * SECTOR
  writeSync(fd, Buffer.of(1 << 5), 0, 1, bitmapAt + far / SECTOR / 8 - 5 / 8)
  writeSync(fd, noise(SECTOR, 1), 0, SECTOR, dataAt + far)
  const fileBytes = dataAt + far + SECTOR
  ftruncateSync(fd, fileBytes)
  const store = new CountingStore(new FileStore(file, fd, fileBytes) as never)
  const view = viewOf(store)
  t.equal(nextData(view, 0), far)
  t.equal(nextHole(view, far), far + SECTOR)
  t.equal(nextData(view, far + SECTOR), -1)
  t.equal(countAllocated(view, Number.MAX_SAFE_INTEGER, 60_000), SECTOR)
  t.ok(store.reads < 200, `${store.reads} reads`)
  t.ok(readAt(view, far, SECTOR).equals(noise(SECTOR, 1)))
  t.ok(readAt(view, 2 ** 40 - 10, 10).equals(Buffer.alloc(10)))
  t.end()
})

t.test('a disk of 1 TiB whose bitmap is all there', t => {
  // As on a file system without holes: a lookup looks at a bounded part.
  const file = join(tempFolder(t), 'disk.cow')
  const fd = openSync(file, 'w+')
  t.teardown(() => closeSync(fd))
  const { bytes, bitmapAt } = buildCow({ layout: 'uml-3', sizeBytes: 0, backing: 'b' })
  bytes.writeBigUInt64BE(2n ** 40n, 12)
  writeSync(fd, bytes, 0, bytes.length, 0)
  const fileBytes = bitmapAt + 2 ** 28
  ftruncateSync(fd, fileBytes)
  const store = new CountingStore(new FileStore(file, fd, fileBytes) as never)
  store.nextData = at => at
  const { driver } = viewOf(store)
  store.bytes = 0
  const { length } = driver.lookup(0, 2 ** 40)
  t.equal(length, 2 ** 30)
  t.ok(store.bytes <= 64 * 4096, `${store.bytes} bytes read`)
  t.end()
})
