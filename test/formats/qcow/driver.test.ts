/** Where bytes are: each kind of entry, in each size of clusters and tables, and each kind of damage. */
import { strict as assert } from 'node:assert'
import t from 'tap'
import { ImageError } from '../../../src/errors.js'
import { nextData, nextHole } from '../../../src/image/reading/holes.js'
import { noise, prose } from '../../fixtures/model.js'
import {
  type BuiltQcow,
  buildQcow,
  type Cluster,
  diskOfQcow,
  type QcowSpec,
} from '../../fixtures/qcow-builder.js'
import { firstDifference, readAll, readAt } from '../../support/image.js'
import { MemoryStore } from '../../support/stores.js'
import { wrongReads } from '../vmdk/grains.js'
import { viewQcow } from './disks.js'

const K = 1024
const CLUSTER = 4 * K

const data = (seed: number, bytes = CLUSTER): Cluster => ({
  kind: 'data',
  bytes: noise(bytes, seed),
})
const packed = (seed: number, bytes = CLUSTER): Cluster => ({
  kind: 'packed',
  content: prose(bytes, seed),
})

/** Data, compressed clusters and gaps; across tables, and at the disk's end. */
function specOf(clusterBits: number, l2Bits: number, more: Partial<QcowSpec> = {}): QcowSpec {
  const cluster = 2 ** clusterBits
  const entries = 2 ** l2Bits
  const last = entries + 3
  return {
    sizeBytes: last * cluster + 1000,
    clusterBits,
    l2Bits,
    clusters: new Map([
      [0, data(1, cluster)],
      [1, data(2, cluster)],
      [3, packed(3, cluster)],
      [4, packed(4, cluster)],
      [5, data(5, cluster)],
      [entries - 1, data(6, cluster)],
      [entries, data(7, cluster)],
      [entries + 2, packed(8, cluster)],
      [last, data(9, Math.min(700, cluster))],
    ]),
    ...more,
  }
}

const viewOf = (bytes: Buffer, parent?: Buffer) =>
  viewQcow(new MemoryStore('disk.qcow', bytes), parent)

for (let clusterBits = 9; clusterBits <= 16; clusterBits++) {
  const title = `clusters of 2^${clusterBits} bytes, tables of 2^6 to 2^13 entries`
  t.test(title, async t => {
    for (let l2Bits = 6; l2Bits <= 13; l2Bits++) {
      const sizeBytes = Math.min((2 ** l2Bits + 3) * 2 ** clusterBits + 1000, 40_000_000)
      const spec = specOf(clusterBits, l2Bits)
      const within = [...(spec.clusters ?? [])].filter(([at]) => at * 2 ** clusterBits < sizeBytes)
      const cut = { ...spec, sizeBytes, clusters: new Map(within) }
      const view = viewOf(buildQcow(cut).bytes)
      t.equal(firstDifference(readAll(view), diskOfQcow(cut)), -1, `2^${l2Bits} entries`)
    }
  })
}

const shapes: { title: string; more: Partial<QcowSpec> }[] = [
  { title: 'as QEMU lays it out', more: {} },
  { title: 'clusters at any sector', more: { alignment: 512, gapSectors: 3 } },
  { title: 'gaps between clusters', more: { gapSectors: 8 } },
]
for (const { title, more } of shapes) {
  t.test(`reads around the borders of clusters: ${title}`, async t => {
    const spec = specOf(12, 6, more)
    t.same(wrongReads(viewOf(buildQcow(spec).bytes), diskOfQcow(spec), CLUSTER), [])
  })
}

t.test('over a parent', async t => {
  const spec = specOf(12, 6, { backingName: 'base' })
  for (const bytes of [spec.sizeBytes, spec.sizeBytes + 9 * K, 30_001, 0]) {
    const parent = noise(bytes, 77)
    const disk = diskOfQcow(spec, parent)
    t.same(
      wrongReads(viewOf(buildQcow(spec).bytes, parent), disk, CLUSTER),
      [],
      `of ${bytes} bytes`,
    )
  }
})

t.test('neighbours are one extent, over the slices of a table', async t => {
  const count = 2000
  const clusters = new Map(Array.from({ length: count }, (_, i) => [i, data(i, 512)] as const))
  const spec = { sizeBytes: 4096 * 512, clusterBits: 9, l2Bits: 12, clusters }
  const { driver } = viewOf(buildQcow(spec).bytes)
  const first = driver.lookup(0, 4096 * 512)
  assert(first.kind === 'data')
  t.equal(first.length, count * 512)
  t.match(driver.lookup(count * 512, 2096 * 512), { kind: 'parent', length: 2096 * 512 })
  t.match(driver.lookup(100, 5), { kind: 'data', at: first.at + 100, length: 5 })
})

t.test('tables that are not there are passed over at once', async t => {
  const entries = 2 ** 6
  const spec: QcowSpec = {
    sizeBytes: 5000 * entries * 512,
    clusterBits: 9,
    l2Bits: 6,
    clusters: new Map([[4999 * entries, data(1, 512)]]),
  }
  const { driver } = viewOf(buildQcow(spec).bytes)
  const unallocated = driver.lookup(700, spec.sizeBytes - 700)
  t.match(unallocated, { kind: 'parent', length: 4999 * entries * 512 - 700 })
})

t.test('holes of the file are holes of the disk', async t => {
  const spec = {
    sizeBytes: 64 * K,
    clusters: new Map([
      [2, data(1)],
      [3, data(2)],
    ]),
  }
  const { bytes, placeOf } = buildQcow(spec)
  const store = new MemoryStore('disk.qcow', bytes)
  store.punch(placeOf(2), CLUSTER)
  const view = viewQcow(store)
  t.equal(nextData(view, 0), 3 * CLUSTER)
  t.equal(nextHole(view, 3 * CLUSTER), 4 * CLUSTER)
})

t.test('a file may end within its last cluster', async t => {
  for (const alignment of [4096, 512]) {
    const spec: QcowSpec = {
      sizeBytes: 64 * K,
      alignment,
      gapSectors: 1,
      clusters: new Map([
        [2, data(1)],
        [3, data(2)],
      ]),
    }
    const { bytes, placeOf } = buildQcow(spec)
    const end = placeOf(3) + 700
    const view = viewOf(bytes.subarray(0, end))
    const disk = diskOfQcow(spec)
    disk.fill(0, 3 * CLUSTER + 700)
    t.equal(firstDifference(readAll(view), disk), -1, `aligned to ${alignment}`)
    t.equal(nextHole(view, 2 * CLUSTER), 3 * CLUSTER + 700)
  }
})

/** The image with a word changed. */
function changed({ bytes }: BuiltQcow, at: number, value: bigint): Buffer {
  const copy = Buffer.from(bytes)
  copy.writeBigUInt64BE(value, at)
  return copy
}

const HONEST: QcowSpec = {
  sizeBytes: 8 * 64 * CLUSTER,
  l2Bits: 6,
  clusters: new Map([
    [0, data(1)],
    [1, data(2)],
    [64, data(3)],
    [66, packed(4)],
  ]),
}
const built = buildQcow(HONEST)
const fileBytes = BigInt(built.bytes.length)
const cluster0 = built.entryAt(0)
const compressed = (at: bigint, bytes: bigint) => (1n << 63n) | (bytes << 51n) | at

const damages: { title: string; bytes: Buffer; offset: number; words: RegExp }[] = [
  {
    title: 'a cluster between sectors',
    bytes: changed(built, cluster0, 0x1234n),
    offset: 0,
    words: /an L2 entry maps a cluster at 4660, which is no sector/,
  },
  {
    title: 'a cluster past the end of the file',
    bytes: changed(built, cluster0, (fileBytes + 511n) & ~511n),
    offset: 0,
    words: /maps a cluster at \d+, beyond the end of the file/,
  },
  {
    title: 'a cluster past the end of any file',
    bytes: changed(built, cluster0, (1n << 62n) + 512n),
    offset: 0,
    words: /beyond the end of the file/,
  },
  {
    title: 'a table between sectors',
    bytes: changed(built, built.l1EntryAt(1), 0x1008n),
    offset: 64 * CLUSTER,
    words: /the L1 entry 1 names an L2 table at 4104, no sector/,
  },
  {
    title: 'a table past the end of the file',
    bytes: changed(built, built.l1EntryAt(1), ((fileBytes + 4095n) & ~4095n) + 4096n),
    offset: 64 * CLUSTER,
    words: /the L1 entry 1 names an L2 table at \d+, beyond the end of the file/,
  },
  {
    title: 'a table with a bit 63',
    bytes: changed(built, built.l1EntryAt(1), (1n << 63n) | 4096n),
    offset: 64 * CLUSTER,
    words: /beyond the end of the file/,
  },
  {
    title: 'a table that the end of the file cuts off',
    bytes: buildQcow({
      ...HONEST,
      clusters: new Map([[0, { kind: 'entry', entry: 0n }]]),
    }).bytes.subarray(0, -1),
    offset: 0,
    words: /a table at 4096 lies beyond the end of the file/,
  },
  {
    title: 'a compressed cluster past the end of the file',
    bytes: changed(built, built.entryAt(66), compressed(1n << 40n, 100n)),
    offset: 66 * CLUSTER,
    words: /a compressed cluster at 1099511627776 lies beyond the end of the file/,
  },
  {
    title: 'a compressed cluster of no bytes',
    bytes: changed(built, built.entryAt(66), compressed(BigInt(built.placeOf(66)), 0n)),
    offset: 66 * CLUSTER,
    words: /a compressed cluster is damaged or cut off/,
  },
  {
    title: 'a compressed cluster of too few bytes',
    bytes: changed(built, built.entryAt(66), compressed(BigInt(built.placeOf(66)), 20n)),
    offset: 66 * CLUSTER,
    words: /a compressed cluster is damaged or cut off/,
  },
]

for (const { title, bytes, offset, words } of damages) {
  t.test(`damage: ${title}`, async t => {
    const view = viewOf(bytes)
    try {
      readAt(view, offset + 5, 10)
      t.fail('read')
    } catch (error) {
      if (!(error instanceof ImageError)) throw error
      t.equal(error.code, 'CORRUPT')
      t.match(error.message, words)
      t.equal(error.context.path, 'disk.qcow')
      t.equal(error.context.offset, offset + 5)
    }
    // The good part before it is read.
    if (offset > 0) t.ok(readAt(view, 0, offset).equals(diskOfQcow(HONEST).subarray(0, offset)))
  })
}

t.test('damage further on is for the read that gets there', async t => {
  const view = viewOf(changed(built, built.entryAt(1), 0x1234n))
  t.match(view.driver.lookup(0, 3 * CLUSTER), { kind: 'data', length: CLUSTER })
})

t.test('an L1 entry that names the very end of the file names nothing yet', async t => {
  for (const more of [0, 700]) {
    const bytes = Buffer.concat([built.bytes, Buffer.alloc(more)])
    const end = Math.ceil(bytes.length / CLUSTER) * CLUSTER
    bytes.writeBigUInt64BE(BigInt(end), built.l1EntryAt(5))
    const disk = diskOfQcow(HONEST)
    t.equal(firstDifference(readAll(viewOf(bytes)), disk), -1)
  }
})

t.test('the L1 table anywhere', async t => {
  // Behind a cluster, and over the border of a slice.
  const { bytes, l1Offset } = built
  const at = Math.ceil(bytes.length / 4096) * 4096 + 4096 - 8
  const moved = Buffer.alloc(at + 8 * 8)
  bytes.copy(moved)
  bytes.copy(moved, at, l1Offset, l1Offset + 8 * 8)
  moved.fill(0, l1Offset, l1Offset + 8 * 8)
  moved.writeBigUInt64BE(BigInt(at), 40)
  t.equal(firstDifference(readAll(viewOf(moved)), diskOfQcow(HONEST)), -1)
})
