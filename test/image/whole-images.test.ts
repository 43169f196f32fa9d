/** The library: images converted and compared by their names. */
import { existsSync, readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { compareImages, convertImage, describeImage } from '../../src/index.js'
import { noise } from '../fixtures/model.js'
import { buildImage, type Cluster, type ImageSpec } from '../fixtures/qcow2-builder.js'
import { tempFolder } from '../support/run.js'

const CLUSTER = 65_536
const SIZE = 8 * CLUSTER
const data = (seed: number): Cluster => ({ kind: 'data', bytes: noise(CLUSTER, seed) })
const SPEC: ImageSpec = {
  clusterBits: 16,
  sizeBytes: SIZE,
  clusters: new Map([
    [0, data(1)],
    [5, data(2)],
  ]),
  snapshots: [
    { id: '1', name: 'twin', clusters: new Map([[0, data(3)]]) },
    { id: '2', name: 'twin', clusters: new Map([[0, data(4)]]) },
    { id: '3', name: 'one', clusters: new Map([[7, data(5)]]) },
  ],
}

function sourceIn(folder: string): string {
  const file = join(folder, 'source.qcow2')
  writeFileSync(file, buildImage(SPEC).bytes())
  return file
}

/** The disk that has the noise of these seeds in these clusters. */
function diskOf(clusters: Record<number, number>): Buffer {
  const disk = Buffer.alloc(SIZE)
  for (const [index, seed] of Object.entries(clusters)) {
    noise(CLUSTER, seed).copy(disk, Number(index) * CLUSTER)
  }
  return disk
}

async function isSame(t: Test, file: string, disk: Buffer): Promise<void> {
  const raw = `${file}.check`
  await convertImage(file, raw)
  t.ok(readFileSync(raw).equals(disk))
}

t.test('an image and its snapshots are converted', async t => {
  const folder = tempFolder(t)
  const source = sourceIn(folder)
  const cases = [
    [source, {}, { 0: 1, 5: 2 }],
    [source, { snapshot: { id: '2' } }, { 0: 4 }],
    [source, { snapshot: { id: '1', tag: 'twin' } }, { 0: 3 }],
    [`${source}@one`, {}, { 7: 5 }],
  ] as const
  for (const [i, [name, options, clusters]] of cases.entries()) {
    const target = join(folder, `target${i}`)
    const told: number[] = []
    const onProgress = (done: number, total: number) => void told.push(done / total)
    const more = { targetFormat: 'qcow2', compress: i === 0, onProgress }
    await convertImage(name, target, { ...options, ...more })
    await isSame(t, target, diskOf(clusters))
    t.equal(told.at(-1), 1)
  }
  const refused = join(folder, 'refused')
  await t.rejects(convertImage(source, refused, { snapshot: { tag: 'twin' } }), /2 times/)
  await t.rejects(
    convertImage(source, refused, { snapshot: { id: '9' } }),
    /no snapshot with the ID/,
  )
  const both = { snapshot: { id: '1', tag: 'one' } }
  await t.rejects(convertImage(source, refused, both), /the ID 1 and the tag "one"/)
  t.notOk(existsSync(refused))
})

t.test('options, a base, encryption, and what is refused', async t => {
  const folder = tempFolder(t)
  const source = sourceIn(folder)
  await convertImage(source, join(folder, 'base.qcow2'), {
    ...{ targetFormat: 'qcow2', snapshot: { id: '1' } },
    options: { cluster_size: 4096 },
  })
  const target = join(folder, 'top.qcow2')
  const onto = { targetFormat: 'qcow2', base: { name: 'base.qcow2' } }
  await convertImage(source, target, onto)
  t.match(describeImage(target), [{ 'backing-filename': 'base.qcow2' }])
  await isSame(t, target, diskOf({ 0: 1, 5: 2 }))

  const secret = join(folder, 'secret.qcow2')
  const options = { 'encrypt.format': 'luks', 'encrypt.iter-time': 1 }
  const encrypted = { targetFormat: 'qcow2', options, targetPassphrase: 'open' }
  await convertImage(source, secret, encrypted)
  t.equal((await compareImages(secret, source, { passphrase: 'open' })).kind, 'same')
  await t.rejects(compareImages(secret, source, { passphrase: 'shut' }), /passphrase/)

  const before = readdirSync(folder)
  await t.rejects(convertImage(source, target, onto), { code: 'REFUSED' })
  await t.rejects(convertImage(source, `${target}2`, { options: { no: 1 } }), {
    name: 'UsageError',
  })
  const signal = AbortSignal.abort(new Error('enough'))
  await t.rejects(convertImage(source, `${target}2`, { signal }), /enough/)
  t.strictSame(readdirSync(folder), before)
  await convertImage(source, target, { ...onto, force: true })
})

t.test('two disks are compared', async t => {
  const folder = tempFolder(t)
  const source = sourceIn(folder)
  const raw = join(folder, 'disk.raw')
  await convertImage(source, raw)
  const open = { format: 'qcow2', second: { format: 'raw' } }
  t.strictSame(await compareImages(source, raw, open), { kind: 'same', sizesDiffer: false })
  truncateSync(raw, SIZE + 512)
  t.match(await compareImages(source, raw, open), { kind: 'same', sizesDiffer: true })
  t.match(await compareImages(source, raw, { ...open, isStrict: true }), { kind: 'sizes' })
  const found = await compareImages(`${source}@one`, source)
  t.match(found, { kind: 'content', offset: 0 })
  const byId = { snapshot: { id: '1' }, second: { snapshot: { id: '2' } } }
  t.match(await compareImages(source, source, byId), { kind: 'content', offset: 0 })
  await t.rejects(compareImages(source, join(folder, 'none')), /no such file/)
})
