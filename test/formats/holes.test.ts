/** Holes and data: what programs that copy sparse files see. */
import { closeSync, ftruncateSync, openSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { countAllocated, nextData, nextHole } from '../../src/image/reading/holes.js'
import { noise, prose } from '../fixtures/model.js'
import { deflated } from '../fixtures/packers.js'
import { buildImage, type Cluster, type ImageSpec } from '../fixtures/qcow2-builder.js'
import { dataRuns, openedImage, readAt } from '../support/image.js'
import { tempFolder } from '../support/run.js'
import { cpuMs } from '../support/cpu.js'

const K = 1024
const data = (bytes: number, seed: number): Cluster => ({ kind: 'data', bytes: noise(bytes, seed) })

function viewOf(t: Test, spec: ImageSpec, base?: Buffer) {
  const folder = tempFolder(t)
  const image = join(folder, 'disk.qcow2')
  if (base) writeFileSync(join(folder, 'base.raw'), base)
  const backing = base && { backing: { name: 'base.raw', format: 'raw' } }
  const built = buildImage({ ...spec, ...backing })
  built.write(image)
  return { built, image, view: openedImage(t, image).view() }
}

t.test('every kind of cluster', async t => {
  const { view } = viewOf(t, {
    clusterBits: 12,
    sizeBytes: 60 * K,
    clusters: new Map<number, Cluster>([
      [1, data(4 * K, 1)],
      [2, data(4 * K, 2)],
      [4, deflated(prose(4 * K, 3))],
      [6, { kind: 'zero' }],
      [7, { kind: 'zero-allocated', bytes: noise(4 * K, 4) }],
      [14, data(4 * K, 5)],
    ]),
  })
  const runs = [
    { start: 4 * K, end: 12 * K },
    { start: 16 * K, end: 20 * K },
    { start: 56 * K, end: 60 * K },
  ]
  t.same(dataRuns(view), runs)
  t.equal(nextData(view, 5 * K), 5 * K)
  t.equal(nextHole(view, 5 * K), 12 * K)
  t.equal(nextHole(view, 13 * K), 13 * K)
  t.equal(nextData(view, 60 * K - 1), 60 * K - 1)
  t.equal(nextHole(view, 60 * K - 1), 60 * K, "the disk's end counts as a hole")
  t.equal(countAllocated(view, 2 ** 40, 1000), 16 * K)
})

t.test('a backing file shows through, as far as it goes', async t => {
  const { view } = viewOf(
    t,
    { clusterBits: 12, sizeBytes: 64 * K, clusters: new Map([[1, { kind: 'zero' }]]) },
    noise(10 * K, 1),
  )
  t.same(dataRuns(view), [
    { start: 0, end: 4 * K },
    { start: 8 * K, end: 10 * K },
  ])
})

t.test('a hole at the end is one', async t => {
  const { view } = viewOf(t, {
    clusterBits: 9,
    sizeBytes: 2 ** 30,
    clusters: new Map([[0, data(512, 1)]]),
  })
  t.equal(nextHole(view, 0), 512)
  t.equal(nextData(view, 512), -1)
  t.ok(countAllocated(view, 2 ** 40, 1000) < 2 ** 30)
})

t.test('clusters that were never written are holes of the file', async t => {
  const cluster: Cluster = { kind: 'data', bytes: Buffer.alloc(0) }
  const { view } = viewOf(t, {
    clusterBits: 16,
    sizeBytes: 256 * K,
    clusters: new Map([
      [0, cluster],
      [1, data(64 * K, 1)],
      [2, { ...cluster }],
    ]),
  })
  t.same(dataRuns(view), [{ start: 64 * K, end: 128 * K }])
})

t.test('a raw image has the holes of its file', async t => {
  const image = join(tempFolder(t), 'disk.raw')
  const fd = openSync(image, 'w')
  writeSync(fd, noise(64 * K, 1), 0, 64 * K, 64 * K)
  ftruncateSync(fd, 256 * K)
  closeSync(fd)
  t.same(dataRuns(openedImage(t, image).view()), [{ start: 64 * K, end: 128 * K }])
})

t.test('bytes lost with the end of the file are no hole', async t => {
  const clusters = new Map([
    [0, data(64 * K, 1)],
    [1, data(64 * K, 2)],
    [3, data(64 * K, 3)],
  ])
  const { built, image } = viewOf(t, { clusterBits: 16, sizeBytes: 512 * K, clusters })
  truncateSync(image, built.placeOf(clusters.get(1) as Cluster))
  const view = openedImage(t, image).view()
  t.throws(() => readAt(view, 64 * K, 512), { code: 'CORRUPT' })
  // A program that copies data only would else make zeros of it, without a word.
  t.equal(nextData(view, 64 * K), 64 * K)
  t.equal(nextData(view, 128 * K), 192 * K)
  t.equal(nextHole(view, 0), 128 * K)
})

t.test('counting ends in time, and never says more than there is', async t => {
  const spec = { clusterBits: 9, sizeBytes: 16 * K * K }
  const clusters = new Map(Array.from({ length: 16_000 }, (_, i) => [i * 2, data(512, 1)]))
  const { view } = viewOf(t, { ...spec, clusters })
  t.equal(countAllocated(view, 2 ** 40, 10_000), 16_000 * 512)
  t.equal(countAllocated(view, 5000, 10_000), 5000, 'no more than the file takes')
  const started = cpuMs()
  const estimate = countAllocated(view, 2 ** 40, 0)
  t.ok(cpuMs() - started < 500)
  t.ok(estimate < spec.sizeBytes, 'an estimate leaves programs looking for holes')
})
