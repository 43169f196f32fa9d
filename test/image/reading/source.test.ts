/** Disks that commands read: their names, what each piece of them is, and what is left of damaged ones. */
import { mkdirSync, readFileSync, readSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import t, { type Test } from 'tap'
import { SystemError } from '../../../src/errors.js'
import { closeChain } from '../../../src/image/opening/chain.js'
import { FileRuns } from '../../../src/image/reading/file-runs.js'
import { splitImageName } from '../../../src/image/reading/image-name.js'
import { openChain } from '../../../src/image/opening/open-chain.js'
import { Losses } from '../../../src/image/reading/salvage.js'
import {
  openSource,
  type Piece,
  type Source,
  SourceImage,
  type SourceOptions,
  viewOfSource,
} from '../../../src/image/reading/source.js'
import { modelOf, noise, prose } from '../../fixtures/model.js'
import { deflated } from '../../fixtures/packers.js'
import { buildImage, type Cluster, type ImageSpec } from '../../fixtures/qcow2-builder.js'
import { randomChain, writeChain } from '../../fixtures/random-chain.js'
import { buildExtent } from '../../fixtures/vmdk-builder.js'
import { vmsdOf } from '../../fixtures/vmsd.js'
import { makeEncrypted } from '../../peers/encrypted.js'
import { readAt } from '../../support/image.js'
import { holds } from '../../support/property.js'
import { needs, tempFolder } from '../../support/run.js'

const K = 1024

async function opened(t: Test, name: string, options?: SourceOptions): Promise<Source> {
  const source = await openSource(name, options)
  t.teardown(() => source.close())
  return source
}

function readAll(source: Source): Buffer {
  const target = Buffer.alloc(source.sizeBytes, 0xee)
  source.read(target, 0, target.length, 0)
  return target
}

t.test('the image is the longest prefix before an @ that is a file', async t => {
  const folder = tempFolder(t)
  for (const name of ['a', 'a@b', 'a@b@c@d']) writeFileSync(join(folder, name), '')
  mkdirSync(join(folder, 'e@f'))
  const split = (name: string) => {
    const { image, tag } = splitImageName(join(folder, name))
    return [image.slice(folder.length + 1), tag]
  }
  t.same(split('a'), ['a', undefined])
  t.same(split('a@x'), ['a', 'x'])
  t.same(split('a@'), ['a', ''])
  t.same(split('a@b'), ['a@b', undefined], 'a file of the whole name wins')
  t.same(split('a@b@c'), ['a@b', 'c'])
  t.same(split('a@c@b'), ['a', 'c@b'])
  t.same(split('a@b@c@d'), ['a@b@c@d', undefined])
  t.same(split('e@f'), ['e@f', undefined], 'a folder is no image')
  t.same(split('none@x'), ['none@x', undefined])
  t.same(splitImageName('@x'), { image: '@x', tag: undefined })
})

const TAGGED: ImageSpec = {
  clusterBits: 12,
  sizeBytes: 64 * K,
  clusters: new Map<number, Cluster>([[0, { kind: 'data', bytes: noise(4 * K, 1) }]]),
  snapshots: [
    { id: '1', name: 'a/b', clusters: new Map([[0, { kind: 'data', bytes: noise(4 * K, 2) }]]) },
    { id: '2', name: 'twice', sizeBytes: 8 * K },
    { id: '3', name: 'twice' },
    { id: '4', name: '' },
  ],
}

t.test('snapshots by their tags', async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  buildImage(TAGGED).write(image)
  t.same((await opened(t, image)).sizeBytes, 64 * K)
  t.ok(
    readAll(await opened(t, `${image}@a/b`))
      .subarray(0, 4 * K)
      .equals(noise(4 * K, 2)),
  )
  t.ok(
    readAll(await opened(t, `${image}@a%2Fb`))
      .subarray(0, 4 * K)
      .equals(noise(4 * K, 2)),
  )
  t.equal((await opened(t, `${image}@twice~2`)).sizeBytes, 8 * K)
  t.equal((await opened(t, `${image}@`)).sizeBytes, 64 * K)
  await t.rejects(openSource(`${image}@twice`), {
    code: 'MISSING',
    message: 'its tag "twice" occurs 2 times, with the IDs "2", "3"',
    context: { path: image, hint: 'name one of "twice~2", "twice~3"' },
  })
  await t.rejects(openSource(`${image}@none`), {
    message: 'it has no snapshot "none"',
    context: { hint: 'it has "a/b", "twice", "twice", ""' },
  })
  const plain = join(tempFolder(t), 'plain.qcow2')
  buildImage({ clusterBits: 12, sizeBytes: 4 * K }).write(plain)
  await t.rejects(openSource(`${plain}@none`), {
    message: 'it has no snapshot "none", and no other one',
  })
})

t.test('snapshots of lower layers, by the names that a mount shows', async t => {
  const folder = tempFolder(t)
  buildImage(TAGGED).write(join(folder, 'base.qcow2'))
  const image = join(folder, 'top.qcow2')
  const backing = { name: 'base.qcow2', format: 'qcow2' }
  buildImage({ clusterBits: 12, sizeBytes: 64 * K, backing }).write(image)
  const found = readAll(await opened(t, `${image}@base@a%2Fb`))
  t.ok(found.subarray(0, 4 * K).equals(noise(4 * K, 2)))
  await t.rejects(openSource(`${image}@a/b`), {
    message: 'it has no snapshot "a/b"',
    context: { hint: 'it has "base@a%2Fb", "base@twice~1.2", "base@twice~1.3", "base@"' },
  })
})

t.test("a machine's snapshots, by their display names", async t => {
  const folder = tempFolder(t)
  const write = (name: string, cid: string, seed: number, parent: string) => {
    const grains = new Map([[0, { kind: 'data' as const, bytes: noise(64 * K, seed) }]])
    const { bytes } = buildExtent({ capacitySectors: 256, grains })
    writeFileSync(join(folder, `${name}-s001.vmdk`), bytes)
    const lines = ['# Disk DescriptorFile', 'version=1', `CID=${cid}`, parent]
    lines.push('createType="twoGbMaxExtentSparse"', `RW 256 SPARSE "${name}-s001.vmdk"`, '')
    writeFileSync(join(folder, `${name}.vmdk`), lines.join('\n'))
  }
  write('disk', '00000001', 1, 'parentCID=ffffffff')
  const parent = 'parentCID=00000001\nparentFileNameHint="disk.vmdk"'
  write('disk-000001', '00000002', 2, parent)
  const disks = { 'scsi0:0': 'disk.vmdk' }
  writeFileSync(join(folder, 'm.vmsd'), vmsdOf([{ uid: 1, name: 'before it', disks }], 1))
  const image = join(folder, 'disk-000001.vmdk')
  t.ok(
    readAll(await opened(t, image))
      .subarray(0, 64 * K)
      .equals(noise(64 * K, 2)),
  )
  const before = await opened(t, `${image}@before it`)
  t.ok(
    readAll(before)
      .subarray(0, 64 * K)
      .equals(noise(64 * K, 1)),
  )
  t.equal(before.layers.length, 1)
})

/** Every piece is what it says, and together they are the disk. */
function isSound(t: Test, source: Source, expected: Buffer, depth: number): boolean {
  let end = 0
  let isGood = true
  let before: Piece | undefined
  for (const piece of source.pieces()) {
    const { offset, length, kind, place, isCompressed } = piece
    const bytes = expected.subarray(offset, offset + length)
    const isFine =
      offset === end &&
      length > 0 &&
      piece.depth < depth &&
      (kind === 'data' ? isCompressed || place !== undefined : bytes.every(byte => byte === 0)) &&
      (!place || fileBytes(place.file.fd, place.at, length).equals(bytes)) &&
      !(before && before.kind === kind && kind !== 'data' && before.depth === piece.depth)
    if (!isFine) t.fail(`${kind} at ${offset}, ${length} bytes, depth ${piece.depth}`)
    isGood &&= isFine
    end = offset + length
    before = piece
  }
  return isGood && end === source.sizeBytes && readAll(source).equals(expected)
}

/** Bytes of a file; what it lacks at its end is zeros. */
function fileBytes(fd: number, at: number, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  readSync(fd, bytes, 0, length, at)
  return bytes
}

t.test('the pieces of random chains and their snapshots', async t => {
  const folder = tempFolder(t)
  await holds(randomChain, 100, async chain => {
    const { image, all } = writeChain(chain, folder)
    const [expected] = all
    // A name in the headers takes the format of raw layers from probing: they may look like anything.
    const format = chain[0]?.format ?? 'raw'
    const opened = await SourceImage.open(image, { format })
    try {
      const disk = opened.disk()
      if (!isSound(t, disk, expected?.disk as Buffer, all.length)) throw new Error('the disk')
      const other = readAt(viewOfSource(disk.spec), 0, disk.sizeBytes)
      if (!other.equals(expected?.disk as Buffer)) throw new Error('the disk in another thread')
      for (const [i, snapshot] of (expected?.snapshots ?? []).entries()) {
        const name = `snapshot ${i + 1}`
        if (!isSound(t, opened.disk(name), snapshot.disk, all.length)) throw new Error(name)
      }
    } finally {
      opened.close()
    }
  })
})

t.test('a part of the disk', async t => {
  const folder = tempFolder(t)
  writeFileSync(join(folder, 'base.raw'), noise(20 * K, 5))
  const image = join(folder, 'disk.qcow2')
  const clusters = new Map<number, Cluster>([
    [1, { kind: 'zero' }],
    [2, deflated(prose(4 * K, 3))],
    [3, deflated(prose(4 * K, 4))],
  ])
  const backing = { name: 'base.raw', format: 'raw' }
  buildImage({ clusterBits: 12, sizeBytes: 64 * K, clusters, backing }).write(image)
  const source = await opened(t, image)
  const kinds = [...source.pieces(2 * K, 40 * K)].map(piece => [
    piece.offset / K,
    piece.length / K,
    piece.kind,
    piece.depth,
    piece.isCompressed,
    piece.place?.at,
  ])
  t.same(kinds, [
    [2, 2, 'data', 1, false, 2 * K],
    [4, 4, 'zero', 0, false, undefined],
    [8, 8, 'data', 0, true, undefined],
    [16, 4, 'data', 1, false, 16 * K],
    [20, 22, 'unallocated', 0, false, undefined],
  ])
  t.same([...source.pieces(5, 0)], [])
  t.equal(source.files.length, 2)
})

t.test('tables that map nothing are passed over in long steps', async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  buildImage({ clusterBits: 16, sizeBytes: 2 ** 44 }).write(image)
  const source = await opened(t, image)
  let lookups = 0
  const { driver } = source.view
  const lookup = driver.lookup.bind(driver)
  driver.lookup = (offset, length) => {
    lookups++
    return lookup(offset, length)
  }
  t.same([...source.pieces()].length, 1)
  t.equal(lookups, 1)
})

t.test('a layer that has nothing is asked once for many pieces below', async t => {
  const folder = tempFolder(t)
  const clusters = new Map<number, Cluster>(
    Array.from({ length: 60 }, (_, i) => [i * 2, { kind: 'data', bytes: noise(512, i) }]),
  )
  buildImage({ clusterBits: 9, sizeBytes: 64 * K, clusters }).write(join(folder, 'base.qcow2'))
  const image = join(folder, 'disk.qcow2')
  const backing = { name: 'base.qcow2', format: 'qcow2' }
  buildImage({ clusterBits: 9, sizeBytes: 64 * K, backing }).write(image)
  const source = await opened(t, image)
  let lookups = 0
  const { driver } = source.view
  const lookup = driver.lookup.bind(driver)
  driver.lookup = (offset, length) => {
    lookups++
    return lookup(offset, length)
  }
  t.ok([...source.pieces()].length > 100)
  t.equal(lookups, 1)
})

t.test('an image that another program writes', async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  buildImage(TAGGED).write(image)
  const chain = openChain(image, { access: 'write', takesLocks: true })
  t.teardown(() => closeChain(chain))
  await t.rejects(openSource(image), { name: 'ImageError', code: 'REFUSED' })
  const source = await opened(t, image, { takesLocks: false })
  t.match(source.warnings.join(), /has it open for writing/)
})

t.test('two who only read', async t => {
  const image = join(tempFolder(t), 'disk.qcow2')
  buildImage(TAGGED).write(image)
  await opened(t, image)
  t.same((await opened(t, image)).warnings, [])
})

t.test('encrypted data', needs('qemu-img'), async t => {
  const file = join(tempFolder(t), 'disk.qcow2')
  await makeEncrypted({ file, format: 'qcow2', passphrase: 'secret' }, 2 ** 20, {
    format: 'luks',
  })
  const write = await SourceImage.open(file, {})
  t.same([...write.disk().pieces()].length, 1, 'what it is, without a passphrase')
  write.close()
  await t.rejects(openSource(file, { ask: async () => [Buffer.from('wrong')] }), {
    message: /passphrase is wrong/,
  })
  const source = await opened(t, file, { ask: async () => [Buffer.from('secret')] })
  t.ok(readAll(source).equals(Buffer.alloc(2 ** 20)))
})

t.test('salvage', async t => {
  const clusters = new Map<number, Cluster>([
    [0, { kind: 'data', bytes: noise(4 * K, 1) }],
    [1, deflated(prose(4 * K, 2))],
    [2, { kind: 'data', bytes: noise(4 * K, 3) }],
    [6, { kind: 'data', bytes: noise(4 * K, 4) }],
  ])
  const spec: ImageSpec = { clusterBits: 12, sizeBytes: 30 * K, clusters }
  const built = buildImage(spec)
  const image = join(tempFolder(t), 'disk.qcow2')
  const model = modelOf(spec, spec.sizeBytes, clusters)
  const bytes = built.bytes()
  // The stream of cluster 1 becomes noise, and the entry of cluster 2 is impossible.
  const packedAt = Number(bytes.readBigUInt64BE(built.l2EntryAt(1)) & ((1n << 58n) - 1n))
  noise(300, 9).copy(bytes, packedAt)
  bytes.writeBigUInt64BE(bytes.readBigUInt64BE(built.l2EntryAt(2)) + 512n, built.l2EntryAt(2))
  writeFileSync(image, bytes)
  const lastAt = Number(bytes.readBigUInt64BE(built.l2EntryAt(6)) & 0xfffffffffe00n)
  if (lastAt + 4 * K === bytes.length) truncateSync(image, lastAt)
  const source = await opened(t, image)
  t.throws(() => readAll(source), { code: 'CORRUPT' })
  t.throws(() => [...source.pieces()], { code: 'CORRUPT' })

  const lostTables = new Losses()
  const pieces = [...source.pieces(0, source.sizeBytes, lostTables.add)]
  t.same(
    lostTables.list.map(({ offset, length }) => [offset, length]),
    [[8 * K, 4 * K]],
  )
  t.equal(pieces.at(-1)?.offset, 28 * K)

  const losses = new Losses()
  const target = Buffer.alloc(source.sizeBytes + 100, 0xee)
  source.salvage(target, 0, target.length, 0, losses.add)
  const places = losses.list.map(({ offset, length }) => [offset, length])
  t.same(places, [
    [4 * K, 8 * K],
    [24 * K, 4 * K],
  ])
  for (const [offset, length] of places as [number, number][])
    model.fill(0, offset, offset + length)
  t.ok(target.subarray(0, source.sizeBytes).equals(model), 'all else reads as it was')
  t.ok(target.subarray(source.sizeBytes).equals(Buffer.alloc(100)))
})

t.test('sectors that a file cannot give', async t => {
  const image = join(tempFolder(t), 'disk.raw')
  writeFileSync(image, noise(64 * K, 1))
  const source = await opened(t, image, { format: 'raw' })
  const bad = new Set([3, 4, 100])
  const { driver } = source.view
  const extent = driver.lookup(0, 1)
  if (extent.kind !== 'data') throw new Error('raw is data')
  const { store } = extent
  const read = store.read.bind(store)
  store.read = (target, start, length, at) => {
    for (let sector = Math.floor(at / 512); sector * 512 < at + length; sector++) {
      if (bad.has(sector)) throw new SystemError('read', 5, image)
    }
    return read(target, start, length, at)
  }
  t.throws(() => readAll(source))
  const losses = new Losses()
  const target = Buffer.alloc(64 * K)
  source.salvage(target, 0, target.length, 0, losses.add)
  t.same(
    losses.list.map(({ offset, length }) => [offset / 512, length / 512]),
    [
      [3, 2],
      [100, 1],
    ],
  )
  const model = readFileSync(image)
  model.fill(0, 3 * 512, 5 * 512).fill(0, 100 * 512, 101 * 512)
  t.ok(target.equals(model))
})

t.test('runs of data in a file', async () => {
  const cuts = fc.uniqueArray(fc.integer({ min: 0, max: 40 }), { maxLength: 12 })
  const asked = fc.array(fc.tuple(fc.nat(39), fc.integer({ min: 1, max: 40 })), { maxLength: 20 })
  await holds(fc.tuple(cuts, asked), 200, ([cuts, asked]) => {
    const G = 2 ** 28
    const bounds = [...cuts].sort((a, b) => a - b).map(cut => cut * G)
    const isData = (at: number) => bounds.filter(bound => bound <= at).length % 2 === 1
    const sizeBytes = 40 * G
    const next = (at: number, wanted: boolean) => {
      const later = [at, ...bounds.filter(bound => bound > at)]
      return later.find(bound => bound < sizeBytes && isData(bound) === wanted)
    }
    const runs = new FileRuns({
      sizeBytes,
      nextData: at => next(at, true) ?? -1,
      nextHole: at => next(at, false) ?? sizeBytes,
    })
    for (const [start, length] of asked) {
      const bytes = Math.min(length, 40 - start) * G
      const end = start * G + bytes
      const change = next(start * G, !isData(start * G)) ?? end
      const expected = { isData: isData(start * G), length: Math.min(change, end) - start * G }
      const found = runs.at(start * G, bytes)
      if (found.isData !== expected.isData || found.length !== expected.length) {
        throw new Error(`${start}+${length}: ${JSON.stringify([found, expected])}`)
      }
    }
  })
})
