import t from 'tap'
import { STATISTIC } from '../../../src/cache/statistics.js'
import { readStats, sharedStats, WorkerStats } from '../../../src/fs/status/stats.js'

const READ = 15
const WRITE = 16
const LOOKUP = 1
const nameOf = (opcode: number) => `op${opcode}`

t.test('nothing yet', async t => {
  const none = { samples: 0, p50: 0, p90: 0, p99: 0, max: 0 }
  const cache = { hits: 0, misses: 0, evictions: 0, bytes: 0 }
  t.same(readStats(sharedStats(2), nameOf), {
    requests: {},
    errors: 0,
    bytesRead: 0,
    bytesWritten: 0,
    flushes: 0,
    caches: { metadata: cache, clusters: cache },
    latency: { read: none, write: none, other: none },
  })
})

t.test('the workers are added up', async t => {
  const shared = sharedStats(2)
  const [first, second] = [new WorkerStats(shared, 0), new WorkerStats(shared, 1)]
  first.count(READ, 0, 4096, 0)
  second.count(READ, 0, 100, 0)
  second.count(READ, -5, 0, 0)
  second.count(LOOKUP, -2, 0, 0)
  second.count(LOOKUP, 0, 128, 0)
  // FORGET has no reply, not even a header.
  second.count(2, 0, -16, 0)
  first.count(4096, -38, 0, 0)
  first.count(WRITE, 0, 512, 0)
  second.count(WRITE, 0, 8, 0)
  second.count(WRITE, -28, 0, 0)
  first.countFlush()
  second.countFlush()
  first.metadata[STATISTIC.hits]! += 3
  second.metadata[STATISTIC.hits]! += 4
  second.clusters[STATISTIC.evictions]! += 5
  t.match(readStats(shared, nameOf), {
    requests: { op0: 1, op1: 2, op2: 1, op15: 3, op16: 3 },
    errors: 4,
    bytesRead: 4196,
    bytesWritten: 520,
    flushes: 2,
    caches: { metadata: { hits: 7, misses: 0 }, clusters: { hits: 0, evictions: 5 } },
  })
})

t.test('one request in sixteen is timed', async t => {
  const stats = new WorkerStats(sharedStats(1), 0)
  const starts = Array.from({ length: 64 }, () => stats.start())
  t.equal(starts.filter(start => start > 0).length, 4)
})

t.test('percentiles', async t => {
  const shared = sharedStats(1)
  const stats = new WorkerStats(shared, 0)
  const take = (opcode: number, milliseconds: number) =>
    stats.count(opcode, 0, 0, performance.now() - milliseconds)
  for (let i = 0; i < 90; i++) take(READ, 1)
  for (let i = 0; i < 9; i++) take(READ, 20)
  take(READ, 3000)
  take(LOOKUP, 20)
  take(WRITE, 3000)
  const { read, write, other } = readStats(shared, nameOf).latency
  t.equal(read.samples, 100)
  // A bucket ends at most a fifth above its values; taking the time costs something, too.
  const isAbout = (got: number, milliseconds: number) =>
    got >= milliseconds * 1000 && got < milliseconds * 1500
  t.ok(isAbout(read.p50, 1), `p50 ${read.p50}`)
  t.ok(isAbout(read.p90, 1), `p90 ${read.p90}`)
  t.ok(isAbout(read.p99, 20), `p99 ${read.p99}`)
  t.ok(isAbout(read.max, 3000), `max ${read.max}`)
  t.ok(isAbout(other.p50, 20), `other p50 ${other.p50}`)
  t.equal(other.p50, other.max)
  t.ok(isAbout(write.p50, 3000), `write p50 ${write.p50}`)
})

t.test('times out of all range', async t => {
  const shared = sharedStats(1)
  const stats = new WorkerStats(shared, 0)
  stats.count(LOOKUP, 0, 0, performance.now() + 1e6)
  stats.count(READ, 0, 0, performance.now() - 1e12)
  const { read, other } = readStats(shared, nameOf).latency
  t.match(other, { samples: 1, max: 0.297 })
  t.match(read, { samples: 1, p50: read.max })
})
