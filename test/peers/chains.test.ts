/** Backing chains, snapshots and what QEMU does to an image later in its life. */
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { catalogOf } from '../../src/image/catalog.js'
import { firstDifference, openedImage, readAll } from '../support/image.js'
import { needs, run, tempFolder } from '../support/run.js'
import { agreesWithQemu, convertedBy, qemuImg, qemuIo, randomWrites } from './qemu.js'

const K = 1024
const M = K * K
const tools = needs('qemu-img', 'qemu-io')

interface LayerCase {
  format?: 'raw' | 'qcow2'
  sizeBytes: number
  cluster?: number
  options?: string
}

/** Makes the layers from the lowest up, writes to each, and returns the image on top. */
async function makeChain(folder: string, layers: readonly LayerCase[]): Promise<string> {
  let below: { name: string; format: string } | undefined
  for (const [
    index,
    { format = 'qcow2', sizeBytes, cluster = 64 * K, options },
  ] of layers.entries()) {
    const name = `layer${index}.${format}`
    const image = join(folder, name)
    const backing = below ? ['-b', below.name, '-F', below.format] : []
    const all = [options, format === 'qcow2' ? `cluster_size=${cluster}` : undefined]
    const given = all.filter(option => option !== undefined).join(',')
    const withOptions = given ? ['-o', given] : []
    await run(
      'qemu-img',
      ['create', '-q', '-f', format, ...withOptions, ...backing, image, String(sizeBytes)],
      { cwd: folder },
    )
    const writes = randomWrites(index + 1, sizeBytes, { cluster, count: 10 })
    await qemuIo(image, writes, ['-f', format])
    below = { name, format }
  }
  return join(folder, below?.name as string)
}

const chains: { title: string; layers: LayerCase[] }[] = [
  {
    title: 'qcow2 on qcow2 on raw',
    layers: [{ format: 'raw', sizeBytes: 3 * M }, { sizeBytes: 3 * M }, { sizeBytes: 3 * M }],
  },
  {
    title: 'shorter below, ending inside a cluster',
    layers: [
      { format: 'raw', sizeBytes: M + 512 },
      { sizeBytes: 2 * M + 1024 },
      { sizeBytes: 4 * M },
    ],
  },
  {
    title: 'longer below',
    layers: [{ sizeBytes: 6 * M }, { sizeBytes: 3 * M + 512 }, { sizeBytes: M }],
  },
  {
    title: 'shortest in the middle',
    layers: [{ sizeBytes: 4 * M }, { sizeBytes: M }, { sizeBytes: 4 * M }],
  },
  {
    title: 'clusters of all sizes',
    layers: [512, 2 * M, 4 * K, 256 * K, K].map(cluster => ({ sizeBytes: 5 * M, cluster })),
  },
  {
    title: 'subclusters over standard clusters over subclusters',
    layers: [
      { sizeBytes: 2 * M, cluster: 16 * K, options: 'extended_l2=on' },
      { sizeBytes: 2 * M, cluster: 4 * K },
      { sizeBytes: 2 * M, cluster: 128 * K, options: 'extended_l2=on' },
    ],
  },
  {
    title: 'thirty layers',
    layers: Array.from({ length: 30 }, (_, i) => ({ sizeBytes: 2 * M + i * 512, cluster: 4 * K })),
  },
]
for (const { title, layers } of chains) {
  t.test(title, tools, async t => {
    const image = await makeChain(tempFolder(t), layers)
    await agreesWithQemu(t, image)
  })
}

t.test('each layer of a chain is shown as it is', tools, async t => {
  const folder = tempFolder(t)
  const layers = [{ sizeBytes: 2 * M }, { sizeBytes: M }, { sizeBytes: 3 * M }]
  const image = await makeChain(folder, layers)
  const { entries, views } = openedImage(t, image)
  t.same(
    entries.map(entry => entry.name),
    ['layer2.raw', 'layer2@layer1.raw', 'layer2@layer0.raw'],
  )
  for (const [index, entry] of entries.entries()) {
    const theirs = await convertedBy(join(folder, `layer${2 - index}.qcow2`))
    t.equal(firstDifference(readAll(views.viewOf(entry)), theirs), -1, entry.name)
  }
})

async function makeImage(t: Test, options: string, sizeBytes: number): Promise<string> {
  const image = join(tempFolder(t), 'disk.qcow2')
  await qemuImg('create', '-q', '-f', 'qcow2', '-o', options, image, String(sizeBytes))
  return image
}

const SNAPSHOT_OPTIONS = [
  'cluster_size=4096',
  'cluster_size=65536',
  'compat=0.10,cluster_size=4096',
  'extended_l2=on,cluster_size=16384',
  'compression_type=zstd,cluster_size=4096',
]
for (const options of SNAPSHOT_OPTIONS) {
  t.test(`snapshots with ${options}`, tools, async t => {
    const cluster = Number(options.split('=').at(-1))
    const image = await makeImage(t, options, 2 * M)
    for (const [index, name] of ['first', '', 'a/b', 'first', 'ünï\ncode'].entries()) {
      await qemuIo(image, randomWrites(index + 50, 2 * M, { cluster, count: 12 }))
      await qemuImg('snapshot', '-c', name, image)
    }
    await qemuIo(image, randomWrites(99, 2 * M, { cluster, count: 12 }))
    await agreesWithQemu(t, image)
    t.equal(catalogOf(openedImage(t, image).chain).entries.length, 6)
  })
}

t.test('a snapshot of a disk that was shorter', tools, async t => {
  const image = await makeImage(t, 'cluster_size=512', 100 * K)
  await qemuIo(image, randomWrites(1, 100 * K, { cluster: 512 }))
  await qemuImg('snapshot', '-c', 'short', image)
  await qemuImg('resize', '-q', image, '300K')
  await qemuIo(image, randomWrites(2, 300 * K, { cluster: 512 }))
  await qemuImg('snapshot', '-c', 'long', image)
  await qemuImg('resize', '-q', '--shrink', image, '50K')
  await agreesWithQemu(t, image)
  const { entries } = openedImage(t, image)
  t.same(
    entries.map(({ name, sizeBytes }) => [name, sizeBytes / K]),
    [
      ['disk.raw', 50],
      ['disk@short.raw', 100],
      ['disk@long.raw', 300],
    ],
  )
})

t.test('snapshots over a backing file, applied and deleted', tools, async t => {
  const folder = tempFolder(t)
  const image = await makeChain(folder, [
    { format: 'raw', sizeBytes: M },
    { sizeBytes: 2 * M, cluster: 4 * K },
  ])
  for (const name of ['a', 'b', 'c']) {
    await qemuImg('snapshot', '-c', name, image)
    await qemuIo(image, randomWrites(name.charCodeAt(0), 2 * M, { cluster: 4 * K, count: 8 }))
  }
  await qemuImg('snapshot', '-d', 'b', image)
  await qemuImg('snapshot', '-a', 'a', image)
  await qemuIo(image, randomWrites(7, 2 * M, { cluster: 4 * K, count: 3 }))
  await agreesWithQemu(t, image)
})

const histories: { title: string; options?: string; act: (image: string) => Promise<unknown> }[] = [
  {
    title: 'grown over its L1 table',
    options: 'cluster_size=512',
    act: image => qemuImg('resize', '-q', image, '8M'),
  },
  { title: 'shrunk', act: image => qemuImg('resize', '-q', '--shrink', image, '700K') },
  {
    title: 'amended to version 2',
    act: image => qemuImg('amend', '-q', '-o', 'compat=0.10', image),
  },
  {
    title: 'amended to version 3',
    options: 'compat=0.10',
    act: image => qemuImg('amend', '-q', '-o', 'compat=1.1', image),
  },
  {
    title: 'amended to other reference counts',
    act: image => qemuImg('amend', '-q', '-o', 'refcount_bits=64', image),
  },
  {
    title: 'with dirty bitmaps',
    act: async image => {
      await qemuImg('bitmap', '--add', image, 'backup-0')
      await qemuIo(image, ['write -P 7 0 200k'])
      await qemuImg('bitmap', '--add', '-g', '4096', image, 'backup-1')
    },
  },
]
for (const { title, options = 'cluster_size=65536', act } of histories) {
  t.test(title, tools, async t => {
    const image = await makeImage(t, options, M)
    await qemuIo(image, randomWrites(3, M, { cluster: 64 * K }))
    await act(image)
    await agreesWithQemu(t, image)
  })
}

for (const type of ['zlib', 'zstd']) {
  t.test(`compressed as a whole with ${type}`, tools, async t => {
    const source = await makeImage(t, 'cluster_size=65536', 3 * M + 512)
    await qemuIo(source, randomWrites(5, 3 * M, { cluster: 64 * K }))
    const image = `${source}.packed`
    const options = ['-c', '-O', 'qcow2', '-o', `compression_type=${type}`]
    await qemuImg('convert', ...options, source, image)
    await agreesWithQemu(t, image)
  })
}

t.test('an image whose writer died is read, with a warning', tools, async t => {
  const image = await makeImage(t, 'lazy_refcounts=on,cluster_size=4096', M)
  await run('qemu-io', [
    '-f',
    'qcow2',
    '-c',
    'write -P 3 0 64k',
    '-c',
    'flush',
    '-c',
    'abort',
    image,
  ]).catch(() => 'abort is how it ends')
  const { view, warnings } = openedImage(t, image)
  t.match(warnings, [/not closed cleanly/])
  t.equal(firstDifference(readAll(view()).subarray(0, 64 * K), Buffer.alloc(64 * K, 3)), -1)
})
