import fc from 'fast-check'
import t from 'tap'
import { MetadataCache } from '../../../src/cache/metadata-cache.js'
import { STATISTICS } from '../../../src/cache/statistics.js'
import type { FormatDriver } from '../../../src/formats/driver.js'
import { DynamicVpcDriver, FixedVpcDriver } from '../../../src/formats/vpc/driver.js'
import { readVpcHeader } from '../../../src/formats/vpc/header.js'
import type { Store } from '../../../src/io/store.js'
import { noise } from '../../fixtures/model.js'
import {
  buildDynamic,
  buildFixed,
  diskOf,
  SECTOR,
  type VpcSpec,
} from '../../fixtures/vpc-builder.js'
import { holds } from '../../support/property.js'
import { MemoryStore } from '../../support/stores.js'
import { exercise, extentsOf, overRaw, thrownBy, wrongReads } from '../vmdk/grains.js'

function driverOf(store: Store): FormatDriver {
  const header = readVpcHeader(store)
  if (!header.blocks) return new FixedVpcDriver(header, store)
  const metadata = new MetadataCache(2 ** 20, new Float64Array(STATISTICS))
  return new DynamicVpcDriver({ header, store, storeId: 0, metadata }, header.blocks)
}

const open = (image: Buffer) => driverOf(new MemoryStore('disk.vhd', image))

function spec(sizeBytes: number, numbers: readonly number[], more: Partial<VpcSpec> = {}): VpcSpec {
  return { sizeBytes, sectors: new Map(numbers.map(n => [n, noise(SECTOR, n + 1)])), ...more }
}

t.test('a dynamic disk: blocks without a place, and sectors that were never written', async t => {
  const stale = new Map([[20, noise(SECTOR, 99)]])
  const some = spec(16 * 4096 - SECTOR, [0, 1, 5, 16, 17, 18, 19, 40, 126], { stale })
  const driver = open(buildDynamic(some))
  t.equal(driver.sizeBytes, some.sizeBytes)
  t.same(wrongReads(overRaw(driver), diskOf(some), 777), [])
  t.same(
    extentsOf(driver, 0, 12 * SECTOR).map(text => text.replace(/ at .*/, '')),
    ['data 1024', 'zero 1536', 'data 512', 'zero 1024', 'zero 2048'],
  )
  t.same(extentsOf(driver, 48 * SECTOR, 64 * SECTOR), ['zero 32768'], 'many blocks are one')
})

t.test('a fixed disk', async t => {
  const some = spec(20 * SECTOR, [0, 7, 19])
  const driver = open(buildFixed(some))
  t.same(wrongReads(overRaw(driver), diskOf(some), 700), [])
})

t.test('a fixed disk that was cut off never shows its footer', async t => {
  const some = spec(20 * SECTOR, [0, 7, 19])
  const image = buildFixed(some)
  const cut = Buffer.concat([image.subarray(0, 10 * SECTOR), image.subarray(-SECTOR)])
  const driver = open(cut)
  t.equal(driver.lookup(0, driver.sizeBytes).length, 10 * SECTOR)
  t.match(
    thrownBy(() => driver.lookup(10 * SECTOR, SECTOR)),
    { code: 'CORRUPT' },
  )
})

t.test('the size: by the geometry, or by the footer, as QEMU takes it', async t => {
  const geometry = 2 * 2 * 8 * SECTOR
  for (const creator of ['win ', 'd2v ', 'qem2', 'tap\0', 'CTXS']) {
    t.equal(open(buildDynamic(spec(20 * SECTOR, [0], { creator }))).sizeBytes, 20 * SECTOR, creator)
  }
  for (const creator of ['vpc ', 'vs  ', 'qemu']) {
    const image = buildDynamic(spec(40 * SECTOR, [0], { creator }))
    t.equal(open(image).sizeBytes, geometry, creator)
  }
})

t.test('any dynamic disk', async t => {
  const sizes = fc.integer({ min: 1, max: 300 })
  const numbers = fc.array(fc.nat(299), { maxLength: 60 })
  const blocks = fc.constantFrom(512, 1024, 4096, 32768)
  const tries = await holds(
    fc.tuple(sizes, numbers, numbers, blocks),
    60,
    ([count, set, old, blockBytes]) => {
      const within = set.filter(n => n < count)
      const stale = new Map(
        old.filter(n => n < count && !within.includes(n)).map(n => [n, noise(SECTOR, n)]),
      )
      const some = spec(count * SECTOR, within, { blockBytes, stale })
      const wrong = wrongReads(overRaw(open(buildDynamic(some))), diskOf(some), 1500)
      if (wrong.length > 0) throw new Error(wrong.join('\n'))
    },
  )
  t.ok(tries > 0)
})

t.test('damage is refused or answered with an error, and never throws anything else', async t => {
  const some = spec(64 * SECTOR, [0, 9, 20, 33])
  const image = buildDynamic(some)
  // The header is what reading goes by: footers, dynamic header, table and bitmaps.
  const tries = await holds(fc.tuple(fc.nat(2047), fc.nat(255)), 400, ([at, value]) => {
    const damaged = Buffer.from(image)
    damaged[at] = value
    exercise(new MemoryStore('disk.vhd', damaged), driverOf)
  })
  t.ok(tries > 0)
})

const refused: [string, (image: Buffer) => void, RegExp][] = [
  ['a differencing disk', image => void image.writeUInt32BE(4, 60), /differencing/],
  ['no dynamic header', image => void image.writeUInt8(0, 512), /no dynamic header at 512/],
  ['a table past the end', image => void image.writeUInt32BE(1, 512 + 16), /cannot be at/],
  ['a block of 3 bytes', image => void image.writeUInt32BE(3, 512 + 32), /a block of 3 bytes/],
  [
    'too few entries',
    image => void image.writeUInt32BE(1, 512 + 28),
    /has 1 entries, and the disk/,
  ],
  ['another type', image => void image.writeUInt32BE(9, 60), /impossible type 9/],
  ['a size of 2^60', image => void image.writeUInt32BE(2 ** 28, 48), /too large/],
]
for (const [title, change, says] of refused) {
  t.test(title, async t => {
    const image = buildDynamic(spec(64 * SECTOR, [0]))
    change(image)
    // Both footers are the same, whatever their checksum.
    image.copy(image, image.length - SECTOR, 0, SECTOR)
    t.match(thrownBy(() => open(image)).message, says)
  })
}

t.test('a damaged footer: the other one is read', async t => {
  const some = spec(64 * SECTOR, [0, 9, 20, 33])
  const atStart = buildDynamic(some)
  atStart.fill(0, 0, SECTOR)
  t.same(wrongReads(overRaw(open(atStart)), diskOf(some), 4096), [])
  t.match(readVpcHeader(new MemoryStore('a.vhd', atStart)).warnings, [/footer at the end is read/])
  const atEnd = buildDynamic(some)
  atEnd.fill(0, atEnd.length - SECTOR)
  t.same(wrongReads(overRaw(open(atEnd)), diskOf(some), 4096), [])
})

t.test('a block over the image’s own tables', async t => {
  const image = buildDynamic(spec(64 * SECTOR, [0]))
  image.writeUInt32BE(2, 1536)
  const driver = open(image)
  const error = thrownBy(() => driver.lookup(0, SECTOR))
  t.match(error, { code: 'CORRUPT', message: /over the image's own tables/ })
})
