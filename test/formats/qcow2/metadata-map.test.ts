/** The recorded places of metadata, as a map from clusters to kinds would hold them. */
import fc from 'fast-check'
import t from 'tap'
import { createFreeMemory, FreeQueue } from '../../../src/formats/qcow2/free-queue.js'
import {
  createMetadataMapMemory,
  MetadataMap,
  KIND,
  type Kind,
} from '../../../src/formats/qcow2/metadata-map.js'
import { holds } from '../../support/property.js'
import { collectShared } from '../../support/writable.js'

const kind = fc.constantFrom(...Object.values(KIND))
const cluster = fc.oneof(
  fc.nat(300),
  fc.nat(2 ** 31),
  fc.nat(2 ** 20).map(n => n * 2 ** 24),
)
const step = fc.record({
  cluster,
  clusters: fc.integer({ min: 1, max: 20 }),
  kind: fc.option(kind, { nil: 0 as const }),
})

t.test('like a map, for any sequence of changes', async () => {
  await holds(fc.array(step, { maxLength: 2000 }), 150, steps => {
    collectShared()
    const metadataMap = new MetadataMap(createMetadataMapMemory())
    const model = new Map<number, Kind | 0>()
    for (const s of steps) {
      metadataMap.change(s.cluster, s.clusters, s.kind)
      for (let i = 0; i < s.clusters; i++) model.set(s.cluster + i, s.kind)
    }
    for (const [at, expected] of model) {
      if (metadataMap.kindOf(at) !== expected) throw new Error(`${at}: ${metadataMap.kindOf(at)}`)
    }
    if (metadataMap.kindOf(2 ** 40 - 1) !== 0) throw new Error('one that was never added')
  })
})

t.test('two structures in one cluster are told', async t => {
  const metadataMap = new MetadataMap(createMetadataMapMemory())
  t.equal(metadataMap.add(10, 5, KIND.l1), -1)
  t.equal(metadataMap.add(14, 2, KIND.l2), 14)
  t.equal(metadataMap.kindOf(14), KIND.l1, 'the first one stays')
  t.equal(metadataMap.add(20, 1, KIND.snapshotL2), -1)
  t.equal(metadataMap.add(20, 1, KIND.snapshotL2), -1, 'snapshots share tables')
  metadataMap.clear()
  t.equal(metadataMap.kindOf(10), 0)
})

t.test('a hundred thousand tables, and all threads know them', async t => {
  const memory = createMetadataMapMemory()
  const [one, other] = [new MetadataMap(memory), new MetadataMap(memory)]
  for (let i = 0; i < 100_000; i++) one.change(i * 8192 + 3, 1, KIND.l2)
  let missing = 0
  for (let i = 0; i < 100_000; i++) if (other.kindOf(i * 8192 + 3) !== KIND.l2) missing++
  t.equal(missing, 0)
  t.equal(other.kindOf(4), 0)
})

t.test('freed clusters come out in order, up to where a flush began', async t => {
  const queue = new FreeQueue(createFreeMemory())
  queue.put(5, 2)
  const end = queue.end
  queue.put(100, 2500)
  t.same(queue.take(end), { cluster: 5, clusters: 2 })
  t.equal(queue.take(end), undefined)
  t.notOk(queue.isEmpty)
  const rest = []
  for (let run = queue.take(queue.end); run; run = queue.take(queue.end)) rest.push(run)
  t.equal(
    rest.reduce((sum, run) => sum + run.clusters, 0),
    2500,
  )
  t.ok(rest.every(run => run.clusters <= 1024))
  t.ok(queue.isEmpty)
})

t.test('the queue of freed clusters is bounded, and goes round', async t => {
  const queue = new FreeQueue(createFreeMemory())
  for (let round = 0; round < 3; round++) {
    let count = 0
    while (queue.hasCapacity(1)) queue.put(count++, 1)
    t.throws(() => queue.put(0, 1), /full/)
    for (let i = 0; i < count; i++) {
      const run = queue.take(queue.end)
      if (run?.cluster !== i) t.fail(`${run?.cluster} instead of ${i}`)
    }
    t.ok(queue.isEmpty)
  }
})
