/** Good images with some bytes of their tables changed: thousands of them, each used like a mount. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t from 'tap'
import { noise, prose } from '../fixtures/model.js'
import { deflated, zstdFramed } from '../fixtures/packers.js'
import { buildImage, type Cluster, type ImageSpec } from '../fixtures/qcow2-builder.js'
import { holds } from '../support/property.js'
import { tempFolder } from '../support/run.js'
import { Watchdog } from '../support/watchdog.js'

/** In a long test 30 times as many. */
const TRIES = 30
const K = 1024

const data = (bytes: number, seed: number): Cluster => ({ kind: 'data', bytes: noise(bytes, seed) })

const BASES: { title: string; spec: ImageSpec }[] = [
  {
    title: 'version 3 with snapshots and a VM state',
    spec: {
      clusterBits: 12,
      sizeBytes: 4096 * K,
      extensions: [{ type: 0x12345678, data: Buffer.from('unknown') }],
      clusters: new Map<number, Cluster>([
        [0, data(4 * K, 1)],
        [1, data(4 * K, 2)],
        [2, deflated(prose(4 * K, 3))],
        [3, deflated(prose(4 * K, 4), { gap: 3 })],
        [6, { kind: 'zero' }],
        [700, data(4 * K, 5)],
      ]),
      snapshots: [
        {
          name: 'with memory',
          clusters: new Map([[0, data(4 * K, 6)]]),
          vmState: new Map([[0, data(4 * K, 7)]]),
          vmStateBytes: 4000,
          extraBytes: 24,
        },
        { name: 'with memory', clusters: new Map([[600, data(4 * K, 8)]]) },
      ],
    },
  },
  {
    title: 'version 2 with clusters of 512 bytes and a backing file',
    spec: {
      version: 2,
      clusterBits: 9,
      sizeBytes: 100 * K,
      backing: { name: 'base.raw', format: 'raw' },
      clusters: new Map<number, Cluster>([
        [0, data(512, 1)],
        [1, deflated(prose(512, 2))],
        [64, data(512, 3)],
        [199, data(512, 4)],
      ]),
      snapshots: [{ extraBytes: 0, clusters: new Map([[3, data(512, 5)]]) }],
    },
  },
  {
    title: 'subclusters and zstd',
    spec: {
      clusterBits: 14,
      isExtended: true,
      compression: 'zstd',
      sizeBytes: 1024 * K,
      clusters: new Map<number, Cluster>([
        [0, { kind: 'subclusters', allocated: 0xf0, zero: 0xf, bytes: noise(16 * K, 1) }],
        [1, zstdFramed(prose(16 * K, 2))],
        [2, { kind: 'zero-allocated', bytes: noise(16 * K, 3) }],
      ]),
    },
  },
  {
    title: 'an external data file',
    spec: {
      clusterBits: 12,
      sizeBytes: 256 * K,
      dataFile: 'disk.data',
      clusters: new Map([
        [0, data(4 * K, 1)],
        [9, data(4 * K, 2)],
      ]),
    },
  },
]

/** What breaks programs: limits, signs, flags, and offsets of other things in the file. */
const telling = (clusterBits: number) => {
  const cluster = fc.nat(24).map(index => BigInt(index) << BigInt(clusterBits))
  return fc.oneof(
    { weight: 3, arbitrary: cluster },
    { weight: 1, arbitrary: cluster.map(at => at | (1n << 62n)) },
    fc.constantFrom(0n, 1n, 0x7fffffffn, 0x80000000n, 0xffffffffn, 1n << 32n, 1n << 40n),
    fc.constantFrom(1n << 53n, 1n << 56n, 1n << 62n, 1n << 63n, (1n << 63n) - 1n, (1n << 64n) - 1n),
    fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
  )
}
const mutation = (clusterBits: number) =>
  fc.record({
    region: fc.nat(9),
    offset: fc.oneof(
      fc.nat(5).map(entry => entry * 8),
      fc.nat(200),
    ),
    width: fc.constantFrom(1, 4, 8),
    value: telling(clusterBits),
  })

for (const { title, spec } of BASES) {
  t.test(title, async t => {
    const folder = tempFolder(t)
    const image = join(folder, 'disk.qcow2')
    writeFileSync(join(folder, 'base.raw'), noise(90 * K, 9))
    const built = buildImage(spec)
    built.writeDataFile(join(folder, 'disk.data'))
    const good = built.bytes()
    const packed = [...(spec.clusters?.values() ?? [])].find(({ kind }) => kind === 'packed')
    const l2At = built.l2EntryAt(0)
    const regions = [0, built.l1At, l2At, l2At, ...built.snapshotL1At]
    if (spec.snapshots) regions.push(built.snapshotsAt)
    if (packed) regions.push(built.placeOf(packed))
    const watchdog = new Watchdog(t)
    const mutations = fc.array(mutation(spec.clusterBits as number), { minLength: 1, maxLength: 4 })
    const runs = await holds(mutations, TRIES, async all => {
      const bytes = Buffer.from(good)
      for (const { region, offset, width, value } of all) {
        const at = (regions[region % regions.length] as number) + offset
        for (let i = 0; i < width; i++) {
          bytes[at + i] = Number((value >> BigInt(8 * (width - 1 - i))) & 0xffn)
        }
      }
      writeFileSync(image, bytes)
      const { hangs, unexpected, milliseconds } = await watchdog.exercise(image)
      if (hangs) throw new Error(`no answer after ${milliseconds} ms`)
      if (unexpected.length > 0) throw new Error(unexpected[0])
    })
    t.comment(`${runs} images`)
    t.ok(runs >= TRIES, `${runs} images`)
  })
}
