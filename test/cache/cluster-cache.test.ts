/** Decompressed clusters: each once, as long as there is room. */
import t from 'tap'
import { ClusterCache } from '../../src/cache/cluster-cache.js'
import { STATISTIC, STATISTICS } from '../../src/cache/statistics.js'

function makeCache(maxBytes: number) {
  const counts = new Float64Array(STATISTICS)
  return { counts, cache: new ClusterCache(maxBytes, counts) }
}

t.test('a cluster is decompressed once', async t => {
  const { cache, counts } = makeCache(1000)
  const cluster = cache.get(0, 7, () => Buffer.alloc(100))
  t.equal(
    cache.get(0, 7, () => t.fail('again') as never),
    cluster,
  )
  t.not(
    cache.get(1, 7, () => Buffer.alloc(100)),
    cluster,
    'another store',
  )
  t.not(
    cache.get(0, 8, () => Buffer.alloc(100)),
    cluster,
    'another place',
  )
  t.same([counts[STATISTIC.hits], counts[STATISTIC.misses], counts[STATISTIC.bytes]], [1, 3, 300])
})

t.test('its bytes are bounded', async t => {
  const { cache, counts } = makeCache(1000)
  for (let at = 0; at < 100; at++) cache.get(0, at, () => Buffer.alloc(300))
  t.same([counts[STATISTIC.bytes], counts[STATISTIC.evictions]], [900, 97])
  t.equal(cache.get(0, 500, () => Buffer.alloc(2000)).length, 2000, 'what is too large is given')
  t.equal(counts[STATISTIC.bytes], 900, 'but not kept')
})

t.test('a failure is tried again', async t => {
  const { cache } = makeCache(1000)
  const fail = () => {
    throw new Error('damaged')
  }
  t.throws(() => cache.get(0, 1, fail), /damaged/)
  t.equal(cache.get(0, 1, () => Buffer.alloc(5)).length, 5)
})
