/** What a check finds, by images that were built sound and then damaged in one place. */
import t from 'tap'
import { MAX_FINDINGS } from '../../../src/formats/check/report.js'
import { checkImage, checkQcow2 } from '../../../src/formats/qcow2/check.js'
import { Qcow2Structure } from '../../../src/formats/qcow2/check/structure.js'
import { L2Catalog } from '../../../src/formats/qcow2/check/l1-walk.js'
import { Qcow2Report } from '../../../src/formats/qcow2/check/report.js'
import { CellMemory } from '../../../src/formats/qcow2/check/window.js'
import { noise, prose } from '../../fixtures/model.js'
import { deflated } from '../../fixtures/packers.js'
import {
  type BuiltImage,
  buildImage,
  type Cluster,
  type ImageSpec,
} from '../../fixtures/qcow2-builder.js'
import { MemoryStore } from '../../support/stores.js'
import { cpuMs } from '../../support/cpu.js'

const K = 1024
const COPIED = 1n << 63n
const data = (bytes: number, seed: number): Cluster => ({ kind: 'data', bytes: noise(bytes, seed) })

const SHARED = data(4 * K, 9)
const FIRST = data(4 * K, 1)
const BASE: ImageSpec = {
  clusterBits: 12,
  sizeBytes: 4096 * K,
  clusters: new Map<number, Cluster>([
    [0, FIRST],
    [1, SHARED],
    [2, deflated(prose(4 * K, 3))],
    [3, deflated(prose(4 * K, 4), { gap: 3 })],
    [6, { kind: 'zero' }],
    [7, { kind: 'zero-allocated', bytes: noise(4 * K, 6) }],
    [700, data(4 * K, 5)],
  ]),
  snapshots: [{ clusters: new Map([[1, SHARED]]) }],
}
const EXTENDED: ImageSpec = {
  clusterBits: 14,
  sizeBytes: 1024 * K,
  isExtended: true,
  clusters: new Map<number, Cluster>([
    [0, { kind: 'subclusters', allocated: 1, zero: 2, bytes: noise(512, 1) }],
    [1, deflated(prose(16 * K, 2))],
    [2, { kind: 'zero' }],
  ]),
}
const EXTERNAL: ImageSpec = {
  clusterBits: 12,
  sizeBytes: 4096 * K,
  dataFile: 'disk.data',
  clusters: new Map<number, Cluster>([
    [0, data(4 * K, 1)],
    [9, data(4 * K, 2)],
  ]),
}

interface Case {
  title: string
  spec?: ImageSpec
  damage?: (bytes: Buffer, image: BuiltImage) => void
  corruptions?: number
  leaks?: number
  checkErrors?: number
  findings?: RegExp[]
}

/** Where the count of a cluster is, of 16 bits. */
const countAt = (bytes: Buffer, image: BuiltImage, at: number): number =>
  Number(bytes.readBigUInt64BE(image.refcountTableAt)) + (at / (4 * K)) * 2
const or = (bytes: Buffer, at: number, bits: bigint): void =>
  void bytes.writeBigUInt64BE(bytes.readBigUInt64BE(at) ^ bits, at)

const CASES: Case[] = [
  { title: 'a sound image' },
  { title: 'version 2', spec: { ...BASE, version: 2, clusters: new Map([[0, FIRST]]) } },
  { title: 'subclusters', spec: EXTENDED },
  { title: 'an external data file', spec: EXTERNAL },
  {
    title: 'a file that ends in its last cluster',
    spec: { ...BASE, clusters: new Map([[0, data(100, 1)]]), snapshots: [], isCutShort: true },
  },
  {
    title: 'a count too high',
    damage: (bytes, image) => bytes.writeUInt16BE(2, countAt(bytes, image, image.placeOf(FIRST))),
    leaks: 1,
    corruptions: 1,
    findings: [/has the COPIED flag, while the count is 2/, /count 2, references 1/],
  },
  {
    title: 'a count too low',
    damage: (bytes, image) => bytes.writeUInt16BE(1, countAt(bytes, image, image.placeOf(SHARED))),
    corruptions: 2,
    findings: [/lacks the COPIED flag/, /count 1, references 2/],
  },
  {
    title: 'a cluster that nothing uses',
    damage: (bytes, image) => bytes.writeBigUInt64BE(0n, image.l2EntryAt(0)),
    leaks: 1,
    findings: [/count 1, references 0/],
  },
  {
    title: 'the COPIED flag missing',
    damage: (bytes, image) => or(bytes, image.l2EntryAt(0), COPIED),
    corruptions: 1,
    findings: [/lacks the COPIED flag/],
  },
  {
    title: 'the COPIED flag in a snapshot, where it says nothing',
    damage: (bytes, image) => or(bytes, image.snapshotL1At[0] as number, COPIED),
  },
  {
    title: 'the COPIED flag of an L2 table missing',
    damage: (bytes, image) => or(bytes, image.l1At, COPIED),
    corruptions: 1,
    findings: [/entry 0 of the L1 table lacks the COPIED flag/],
  },
  {
    title: 'the COPIED flag at a compressed cluster',
    damage: (bytes, image) => or(bytes, image.l2EntryAt(2), COPIED),
    corruptions: 1,
    findings: [/compressed cluster has the COPIED flag/],
  },
  {
    title: 'reserved bits',
    damage: (bytes, image) => {
      or(bytes, image.l2EntryAt(0), 1n << 57n)
      or(bytes, image.l1At, 1n)
    },
    corruptions: 2,
    findings: [/entry 0 of the L1 table has reserved bits/, /an L2 entry has reserved bits/],
  },
  {
    title: 'an L1 entry with flags and no table',
    damage: (bytes, image) => bytes.writeBigUInt64BE(COPIED, image.l1At + 8),
    corruptions: 1,
    leaks: 2,
    findings: [/has flags, but names no L2 table/],
  },
  {
    title: 'a cluster that is not aligned',
    damage: (bytes, image) => or(bytes, image.l2EntryAt(7), 1n << 9n),
    corruptions: 2,
    findings: [/not aligned \(no data\)/, /count 1, references 2/],
  },
  {
    title: 'a cluster past the end of the file',
    damage: (bytes, image) => bytes.writeBigUInt64BE(COPIED | (1n << 40n), image.l2EntryAt(0)),
    corruptions: 2,
    leaks: 1,
    findings: [/past the end of the file/],
  },
  {
    title: 'two places in one cluster',
    damage: (bytes, image) =>
      bytes.writeBigUInt64BE(bytes.readBigUInt64BE(image.l2EntryAt(0)), image.l2EntryAt(5)),
    corruptions: 1,
    findings: [/count 1, references 2/],
  },
  {
    title: 'a structure that shares its cluster, though the count says so',
    damage: (bytes, image) => {
      bytes.writeBigUInt64BE(BigInt(image.l1At), image.l2EntryAt(5))
      bytes.writeUInt16BE(2, countAt(bytes, image, image.l1At))
    },
    corruptions: 1,
    findings: [/share no cluster/],
  },
  {
    title: 'a structure that shares its cluster, and a count that is too high',
    damage: (bytes, image) => {
      bytes.writeBigUInt64BE(BigInt(image.l1At), image.l2EntryAt(5))
      bytes.writeUInt16BE(7, countAt(bytes, image, image.l1At))
    },
    corruptions: 1,
    leaks: 1,
    findings: [/count 7, references 2/, /share no cluster/],
  },
  {
    title: 'a structure that shares its cluster, and counts that cannot be read',
    damage: (bytes, image) => {
      bytes.writeBigUInt64BE(BigInt(image.l1At), image.l2EntryAt(5))
      or(bytes, image.refcountTableAt, 1n << 10n)
    },
    corruptions: 2,
    checkErrors: 14,
    findings: [/refcount block 0 at \d+ is not aligned/, /share no cluster/],
  },
  {
    title: 'no refcount block',
    damage: (bytes, image) => bytes.writeBigUInt64BE(0n, image.refcountTableAt),
    corruptions: 18,
    findings: [/count 0, references 1/],
  },
  {
    title: 'a refcount block that is not aligned',
    damage: (bytes, image) => or(bytes, image.refcountTableAt, 1n << 10n),
    corruptions: 1,
    checkErrors: 14,
    findings: [/refcount block 0 at \d+ is not aligned/, /count unreadable/],
  },
  {
    title: 'a refcount block past the end of the file',
    damage: (bytes, image) => bytes.writeBigUInt64BE(1n << 40n, image.refcountTableAt + 8),
    corruptions: 1,
    findings: [/refcount block 1 at \d+ lies past the end/],
  },
  {
    title: 'a refcount block in the place of another one',
    damage: (bytes, image) =>
      bytes.writeBigUInt64BE(
        bytes.readBigUInt64BE(image.refcountTableAt),
        image.refcountTableAt + 8,
      ),
    corruptions: 2,
    findings: [/refcount block 1 at \d+ shares its cluster/, /count 1, references 2/],
  },
  {
    title: 'subclusters that have data and read as zeros',
    spec: EXTENDED,
    damage: (bytes, image) => bytes.writeBigUInt64BE((3n << 32n) | 1n, image.l2EntryAt(0) + 8),
    corruptions: 1,
    findings: [/have data and read as zeros/],
  },
  {
    title: 'subclusters with data in no cluster',
    spec: EXTENDED,
    damage: (bytes, image) => bytes.writeBigUInt64BE(1n, image.l2EntryAt(2) + 8),
    corruptions: 1,
    findings: [/subclusters with data, but no cluster/],
  },
  {
    title: 'a compressed cluster with subclusters; it stays counted',
    spec: EXTENDED,
    damage: (bytes, image) => bytes.writeBigUInt64BE(1n, image.l2EntryAt(1) + 8),
    corruptions: 1,
    findings: [/compressed cluster has bits of subclusters/],
  },
  {
    title: 'a place of the data file that is not its own',
    spec: EXTERNAL,
    damage: (bytes, image) => bytes.writeBigUInt64BE(COPIED | 4096n, image.l2EntryAt(9)),
    corruptions: 1,
    findings: [/the cluster at 36864 maps 4096 of the data file/],
  },
  {
    title: 'the zero flag in version 2',
    spec: { ...BASE, version: 2, clusters: new Map([[0, FIRST]]), snapshots: [] },
    damage: (bytes, image) => or(bytes, image.l2EntryAt(0), 1n),
    corruptions: 1,
    findings: [/zero flag, which version 2/],
  },
  {
    title: 'a snapshot without the size of its disk',
    spec: { ...BASE, snapshots: [{ extraBytes: 8, clusters: new Map([[1, SHARED]]) }] },
    corruptions: 1,
    findings: [/snapshot 1 lacks the disk's size/],
  },
  {
    title: 'a snapshot whose L1 table cannot be',
    damage: (bytes, image) => bytes.writeBigUInt64BE(4097n, image.snapshotsAt),
    corruptions: 1,
    leaks: 3,
    findings: [/an L1 table of 2 entries at 4097, which cannot be/],
  },
  {
    title: 'a snapshot table that is damaged',
    damage: (bytes, image) => bytes.writeUInt32BE(5000, image.snapshotsAt + 36),
    corruptions: 1,
    leaks: 4,
    findings: [/snapshot 1 has 5000 bytes of extra data/],
  },
]

for (const { title, spec = BASE, damage, findings = [], ...counts } of CASES) {
  t.test(title, async t => {
    const image = buildImage(spec)
    const bytes = image.bytes()
    damage?.(bytes, image)
    const result = checkQcow2(new MemoryStore('disk.qcow2', bytes))
    const { corruptions, leaks, checkErrors } = result
    t.match(
      { corruptions: 0, leaks: 0, checkErrors: 0, ...counts },
      { corruptions, leaks, checkErrors },
    )
    const messages = result.findings.map(({ message }) => message).join('\n')
    for (const finding of findings) t.match(messages, finding)
    if (findings.length === 0) t.equal(messages, '')
  })
}

t.test('every width of a count', async t => {
  for (let refcountOrder = 0; refcountOrder <= 6; refcountOrder++) {
    const snapshots = refcountOrder === 0 ? {} : { snapshots: BASE.snapshots ?? [] }
    const spec = { ...BASE, snapshots: [], refcountOrder, ...snapshots }
    const packed = [2, 3]
    const clusters = [...(BASE.clusters ?? [])].filter(([i]) => !packed.includes(i))
    const store = new MemoryStore('', buildImage({ ...spec, clusters: new Map(clusters) }).bytes())
    t.match(checkQcow2(store), { corruptions: 0, leaks: 0, checkErrors: 0 }, `2^${refcountOrder}`)
  }
})

t.test('an image in many windows is the same as in one', async t => {
  const clusters = new Map<number, Cluster>()
  for (let i = 0; i < 900; i++) clusters.set(i * 3, data(512, i))
  const image = buildImage({ clusterBits: 9, sizeBytes: 2 ** 21, clusters })
  const bytes = image.bytes()
  const blockAt = Number(bytes.readBigUInt64BE(image.refcountTableAt + 8))
  for (const at of [0, 100, 102, 400]) bytes.writeUInt16BE(3, blockAt + at)
  bytes.writeBigUInt64BE(bytes.readBigUInt64BE(image.l2EntryAt(0)), image.l2EntryAt(2697))
  bytes.writeBigUInt64BE(0n, image.l2EntryAt(300))
  const store = new MemoryStore('disk.qcow2', bytes)
  const checked = (memory: CellMemory) => {
    const report = new Qcow2Report()
    checkImage(new Qcow2Structure(store), report, {}, memory)
    return report
  }
  const one = checked(new CellMemory())
  const many = checked(new CellMemory(256))
  const byPlace = (report: Qcow2Report) => report.findings.map(f => `${f.at} ${f.message}`).sort()
  t.same(byPlace(many), byPlace(one))
  t.same({ ...many, findings: [] }, { ...one, findings: [] })
  t.ok(one.corruptions > 4 && one.leaks > 4)
})

t.test('L2 tables in parts', async t => {
  const tables = [5, 3, 3, 9, 1, 3, 7, 9].map(n => n * 4096)
  const l1 = Buffer.alloc(64)
  for (const [i, at] of tables.entries()) l1.writeBigUInt64BE(BigInt(at), i * 8)
  const table = { name: '', at: 0, entries: 8, entriesInFile: 8, isActive: true }
  for (const max of [1, 2, 3, 5, 100]) {
    const catalog = new L2Catalog(new MemoryStore('', l1), [table], 2 ** 20, max)
    const found = [...catalog.parts()].flatMap(part =>
      Array.from({ length: part.length }, (_, i) => [(part.at[i] as number) / 4096, part.times[i]]),
    )
    t.same(found, [
      [1, 1],
      [3, 3],
      [5, 1],
      [7, 1],
      [9, 2],
    ])
  }
})

t.test('the list of findings is bounded, the totals are not', async t => {
  const clusters = new Map<number, Cluster>()
  for (let i = 0; i < 2000; i++) clusters.set(i, { kind: 'entry', entry: 2n << 40n })
  const store = new MemoryStore(
    '',
    buildImage({ clusterBits: 12, sizeBytes: 2 ** 23, clusters }).bytes(),
  )
  const result = checkQcow2(store)
  t.equal(result.corruptions, 2000)
  t.equal(result.findings.length, MAX_FINDINGS)
  t.equal(result.findingsLeftOut, 2000 - MAX_FINDINGS)
})

t.test('a header that is damaged is an error that names the file', async t => {
  const bytes = buildImage(BASE).bytes()
  bytes.writeUInt32BE(99, 20)
  const check = () => checkQcow2(new MemoryStore('disk.qcow2', bytes))
  t.throws(check, { name: 'ImageError', context: { path: 'disk.qcow2' } })
})

t.test('hostile images end soon', async t => {
  const SOON_MS = 5000
  const started = cpuMs()
  // A million L1 entries name one table, and each of its entries one cluster.
  const one = data(4 * K, 1)
  const clusters = new Map(Array.from({ length: 512 }, (_, i) => [i, one] as const))
  const wide = buildImage({ clusterBits: 12, sizeBytes: 2 ** 21, clusters, l1Entries: 2 ** 20 })
  const bytes = wide.bytes()
  const entry = bytes.readBigUInt64BE(wide.l1At)
  for (let i = 1; i < 2 ** 20; i++) bytes.writeBigUInt64BE(entry, wide.l1At + i * 8)
  const result = checkQcow2(new MemoryStore('', bytes))
  t.ok(result.corruptions > 2 ** 20)
  t.equal(result.allocatedClusters, 2 ** 29)

  // Thousands of snapshots have all of the file as their L1 table.
  const many = buildImage({ ...BASE, snapshots: Array.from({ length: 5000 }, () => ({})) })
  const table = many.bytes()
  for (let at = many.snapshotsAt, i = 0; i < 5000; i++) {
    const length = 40 + 16 + table.readUInt16BE(at + 12) + table.readUInt16BE(at + 14)
    table.writeBigUInt64BE(0n, at)
    table.writeUInt32BE(2 ** 22, at + 8)
    at += Math.ceil(length / 8) * 8
  }
  t.match(checkQcow2(new MemoryStore('', table)), { checkErrors: 1 })
  t.ok(cpuMs() - started < SOON_MS)
})
