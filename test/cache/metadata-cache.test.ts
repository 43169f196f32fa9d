/** Tables in a bounded cache: which it keeps, which leave it, and which it never takes. */
import t from 'tap'
import { STATISTIC, STATISTICS } from '../../src/cache/statistics.js'
import { MetadataCache } from '../../src/cache/metadata-cache.js'
import { SLICE_BYTES } from '../../src/cache/table-pool.js'
import type { Store } from '../../src/io/store.js'

/** A file whose every byte tells where it is; counts its reads. */
class Pattern implements Store {
  readonly path = '/pattern'
  reads = 0
  constructor(readonly sizeBytes: number) {}
  read(target: Buffer, start: number, length: number, at: number): number {
    this.reads++
    const got = Math.max(0, Math.min(length, this.sizeBytes - at))
    target.fill((at / 512) % 251, start, start + got)
    return got
  }
  nextData = (at: number) => at
  nextHole = () => this.sizeBytes
}

function makeCache(maxBytes: number) {
  const counts = new Float64Array(STATISTICS)
  return { counts, cache: new MetadataCache(maxBytes, counts) }
}

t.test('a slice is read once', async t => {
  const { cache, counts } = makeCache(2 ** 20)
  const store = new Pattern(2 ** 20)
  const first = cache.slice(store, 0, 8192, SLICE_BYTES)
  t.equal(first[0], 16)
  t.equal(cache.slice(store, 0, 8192, SLICE_BYTES), first)
  t.equal(store.reads, 1)
  t.same([counts[STATISTIC.hits], counts[STATISTIC.misses], counts[STATISTIC.evictions]], [1, 1, 0])
  t.ok((counts[STATISTIC.bytes] as number) >= SLICE_BYTES)
})

t.test('stores and places are told apart', async t => {
  const { cache } = makeCache(2 ** 20)
  const stores = [new Pattern(2 ** 53), new Pattern(2 ** 53)] as const
  const places = [0, 512, 2 ** 44, 2 ** 53 - 512].flatMap(at => [0, 1, 511].map(id => ({ at, id })))
  for (const { at, id } of places) cache.slice(stores[0], id, at, 512)
  t.equal(stores[0].reads, places.length)
  for (const { at, id } of places) t.equal(cache.slice(stores[1], id, at, 512)[0], (at / 512) % 251)
  t.equal(stores[1].reads, 0)
})

t.test('its bytes are bounded, and the least used goes first', async t => {
  const maxBytes = 2 ** 20
  const { cache, counts } = makeCache(maxBytes)
  const store = new Pattern(2 ** 40)
  let most = 0
  let wrong = 0
  for (const length of [SLICE_BYTES, 512]) {
    for (let i = 0; i < 5000; i++) {
      cache.slice(store, 0, 0, SLICE_BYTES)
      const at = (i + 1) * SLICE_BYTES
      const slice = cache.slice(store, length === 512 ? 1 : 0, at, length)
      if (slice.length !== length || slice.at(-1) !== (at / 512) % 251) wrong++
      most = Math.max(most, counts[STATISTIC.bytes] as number)
    }
  }
  t.equal(wrong, 0, 'what is read into an evicted slice is what was asked for')
  t.ok(most <= maxBytes, `${most} bytes at most`)
  t.ok((counts[STATISTIC.evictions] as number) > 5000)
  const { reads } = store
  cache.slice(store, 0, 0, SLICE_BYTES)
  t.equal(store.reads, reads, 'what is used all the time stays')
})

t.test('a table that is cut off is damage, and is not kept', async t => {
  const { cache } = makeCache(2 ** 20)
  const store = new Pattern(5000)
  for (let i = 1; i <= 2; i++) {
    t.throws(() => cache.slice(store, 0, 4096, SLICE_BYTES), {
      code: 'CORRUPT',
      message: /a table at 4096 lies beyond the end/,
      context: { path: '/pattern' },
    })
    t.equal(store.reads, i)
  }
})

t.test('a longer table at the place of a shorter one is read anew', async t => {
  const { cache } = makeCache(2 ** 20)
  const store = new Pattern(2 ** 20)
  t.equal(cache.slice(store, 0, 4096, 8).length, 8)
  t.equal(cache.slice(store, 0, 4096, SLICE_BYTES).length, SLICE_BYTES)
  t.ok(cache.slice(store, 0, 4096, 8).length >= 8)
})
