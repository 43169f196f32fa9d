/** Where bytes are: every kind of entry, at every boundary, and what damage leaves readable. */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { modelOf, noise, prose } from '../../fixtures/model.js'
import { deflated, zstdFramed } from '../../fixtures/packers.js'
import { buildImage, type Cluster, type ImageSpec } from '../../fixtures/qcow2-builder.js'
import { firstDifference, openedImage, readAt } from '../../support/image.js'
import { tempFolder } from '../../support/run.js'

const K = 1024
const data = (bytes: number, seed: number): Cluster => ({ kind: 'data', bytes: noise(bytes, seed) })

function opened(t: Test, spec: ImageSpec, base?: Buffer) {
  const folder = tempFolder(t)
  const image = join(folder, 'disk.qcow2')
  if (base) writeFileSync(join(folder, 'base.raw'), base)
  const built = buildImage({
    ...spec,
    ...(base && { backing: { name: 'base.raw', format: 'raw' } }),
  })
  built.write(image)
  if (spec.dataFile !== undefined) built.writeDataFile(join(folder, spec.dataFile))
  return { built, image, view: openedImage(t, image).view() }
}

const disks: { title: string; spec: ImageSpec; base?: Buffer; step?: number }[] = [
  {
    title: 'all kinds over a backing file',
    spec: {
      clusterBits: 12,
      sizeBytes: 50 * K + 77,
      isCutShort: true,
      clusters: new Map<number, Cluster>([
        [1, data(4 * K, 1)],
        [2, data(4 * K, 2)],
        [3, { kind: 'zero' }],
        [4, { kind: 'zero-allocated', bytes: noise(4 * K, 3) }],
        [6, deflated(prose(4 * K, 4), { gap: 3000 })],
        [7, deflated(noise(4 * K, 5))],
        [8, data(4 * K, 6)],
        [12, deflated(noise(4 * K, 7))],
      ]),
    },
    base: noise(48 * K + 5, 9),
    step: 4 * K,
  },
  {
    title: 'subclusters over a backing file',
    spec: {
      clusterBits: 14,
      isExtended: true,
      sizeBytes: 70 * K,
      clusters: new Map<number, Cluster>([
        [
          0,
          {
            kind: 'subclusters',
            allocated: 0xaaaa_0ff0,
            zero: 0x5500_000f,
            bytes: noise(16 * K, 1),
          },
        ],
        [1, { kind: 'subclusters', allocated: 0, zero: 0x8000_0001, bytes: undefined }],
        [2, data(16 * K, 2)],
        [3, data(16 * K, 3)],
        [4, zstdFramed(prose(16 * K, 4))],
      ]),
      compression: 'zstd',
    },
    base: noise(66 * K, 9),
    step: 512,
  },
  {
    title: 'the ends of L2 tables',
    spec: {
      clusterBits: 9,
      sizeBytes: 100 * K,
      clusters: new Map([62, 63, 64, 65, 127, 129, 199].map(i => [i, data(512, i)])),
    },
    step: 32 * K,
  },
]
for (const { title, spec, base, step = 4 * K } of disks) {
  t.test(title, async t => {
    const { view } = opened(t, spec, base)
    const disk = modelOf(spec, spec.sizeBytes, spec.clusters, base)
    t.equal(firstDifference(readAt(view, 0, disk.length), disk), -1, 'all of it')
    const wrong: string[] = []
    for (let border = 0; border <= disk.length; border += step) {
      for (const offset of [border - 1, border, border + 1]) {
        for (const length of [1, 2, 511, 513, step - 1, step, step + 1]) {
          if (offset < 0 || offset >= disk.length) continue
          const expected = Buffer.alloc(length)
          disk.copy(expected, 0, offset, offset + length)
          if (!readAt(view, offset, length).equals(expected)) wrong.push(`${length} at ${offset}`)
        }
      }
    }
    t.same(wrong, [])
  })
}

t.test('an L1 table of 4 MiB', async t => {
  const last = 2 ** 25 - 1
  const clusters = new Map([
    [0, data(512, 1)],
    [2 ** 24, data(512, 2)],
    [last, data(512, 3)],
  ])
  const { view } = opened(t, { clusterBits: 9, sizeBytes: 2 ** 34, clusters })
  t.ok(readAt(view, 0, 512).equals(noise(512, 1)))
  t.ok(readAt(view, 2 ** 33 - 512, 1024).equals(Buffer.concat([Buffer.alloc(512), noise(512, 2)])))
  t.ok(readAt(view, 2 ** 34 - 512, 512).equals(noise(512, 3)))
})

t.test('an external data file', async t => {
  const COPIED = 1n << 63n
  const spec: ImageSpec = {
    clusterBits: 12,
    sizeBytes: 64 * K,
    dataFile: 'disk.data',
    clusters: new Map<number, Cluster>([
      [0, data(4 * K, 1)],
      [3, data(1000, 2)],
      [5, { kind: 'entry', entry: 0n }],
      [6, { kind: 'entry', entry: COPIED | 0x1000n }],
      [7, { kind: 'entry', entry: COPIED }],
      [8, { kind: 'entry', entry: (1n << 62n) | 0x1000n }],
      [9, { kind: 'zero' }],
    ]),
  }
  const { view } = opened(t, spec)
  t.ok(readAt(view, 0, 4 * K).equals(noise(4 * K, 1)), 'a cluster at offset 0')
  t.ok(readAt(view, 12 * K, 1000).equals(noise(1000, 2)))
  t.ok(readAt(view, 13 * K, 3 * K).equals(Buffer.alloc(3 * K)), 'past the end of the file')
  t.ok(
    readAt(view, 20 * K, 4 * K).equals(Buffer.alloc(4 * K)),
    'offset 0 without its bit is nowhere',
  )
  for (const index of [6, 7, 8]) {
    const offset = index * 4 * K
    t.throws(() => readAt(view, offset, 512), { code: 'CORRUPT', context: { offset } })
  }
  t.ok(readAt(view, 36 * K, 4 * K).equals(Buffer.alloc(4 * K)))
})

t.test('reserved bits are no part of an offset', async t => {
  const clusters = new Map([[0, data(4 * K, 1)]])
  const image = join(tempFolder(t), 'disk.qcow2')
  const built = buildImage({ clusterBits: 12, sizeBytes: 16 * K, clusters })
  const file = built.bytes()
  const entry = file.readBigUInt64BE(built.l2EntryAt(0))
  file.writeBigUInt64BE(entry | (0x3fn << 56n) | 0x1fen, built.l2EntryAt(0))
  file.writeBigUInt64BE(file.readBigUInt64BE(built.l1At) | (0x7fn << 56n) | 0x1ffn, built.l1At)
  writeFileSync(image, file)
  t.ok(readAt(openedImage(t, image).view(), 0, 4 * K).equals(noise(4 * K, 1)))
})

const damages: {
  title: string
  entry: bigint
  bitmap?: bigint
  isExtended?: boolean
  version?: 2
}[] = [
  { title: 'a cluster that is not aligned', entry: 0x4200n },
  { title: 'a zero cluster that is not aligned', entry: 0x4201n },
  { title: 'a cluster past the end', entry: 1n << 40n },
  { title: 'a cluster past 2^53', entry: 0x00ff_ffff_ffff_c000n },
  { title: 'a zero flag in version 2', entry: 1n, version: 2 },
  { title: 'a stream past the end', entry: (1n << 62n) | (1n << 40n) },
  { title: 'a stream that is none', entry: (1n << 62n) | 0x30n },
  {
    title: 'a subcluster both zero and allocated',
    entry: 0x4000n,
    bitmap: 0x1_0000_0001n,
    isExtended: true,
  },
  { title: 'a subcluster allocated nowhere', entry: 0n, bitmap: 1n, isExtended: true },
]
for (const { title, entry, bitmap, isExtended = false, version = 3 } of damages) {
  t.test(`${title}: the rest reads on`, async t => {
    const size = 16 * K
    const clusters = new Map<number, Cluster>([
      [0, data(size, 1)],
      [1, { kind: 'entry', entry, ...(bitmap !== undefined && { bitmap }) }],
      [2, data(size, 2)],
    ])
    const spec: ImageSpec = { version, clusterBits: 14, isExtended, sizeBytes: 64 * K, clusters }
    const { view, image } = opened(t, spec)
    t.ok(readAt(view, 0, size).equals(noise(size, 1)), 'before it')
    t.ok(readAt(view, 2 * size, size).equals(noise(size, 2)), 'after it')
    const where = { code: 'CORRUPT', context: { path: image, offset: size } }
    t.throws(() => readAt(view, size, 512), where, 'in it')
    t.throws(() => readAt(view, size - 512, 1024), where, 'over its border')
  })
}

t.test('no more sectors are read than an entry claims', async t => {
  // The stream goes on into a sector that is not its own, though the bytes there would do.
  const cluster = deflated(prose(4 * K, 4), { gap: 500, moreSectors: -1 })
  const { view } = opened(t, {
    clusterBits: 12,
    sizeBytes: 16 * K,
    clusters: new Map([[1, cluster]]),
  })
  t.throws(() => readAt(view, 4 * K, 512), { code: 'CORRUPT', context: { offset: 4 * K } })
})
