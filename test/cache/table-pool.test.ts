/** Tables that change: one truth for all threads, and what a flush has to write of it. */
import fc from 'fast-check'
import t from 'tap'
import { STATISTICS } from '../../src/cache/statistics.js'
import { MetadataCache } from '../../src/cache/metadata-cache.js'
import { createPoolMemory, TablePool } from '../../src/cache/table-pool.js'
import { holds } from '../support/property.js'
import { MemoryStore } from '../support/stores.js'

/** Stages. */
const FIRST = 0
const LAST = 2
const SLICE = 4096

t.test('the other threads see a change by one thread; the file is as before', async t => {
  const memory = createPoolMemory()
  const [one, other] = [new TablePool(memory), new TablePool(memory)]
  const load = () => Buffer.alloc(SLICE, 7)
  one.edit(8192, LAST, load)[5] = 1
  t.equal(other.find(8192)?.[5], 1)
  t.equal(other.find(8192)?.[6], 7)
  t.equal(other.find(4096), undefined)
  t.equal(other.dirty, 1)
})

t.test(
  'a flush takes slices as they were, and leaves slices that changed meanwhile dirty',
  async t => {
    const pool = new TablePool(createPoolMemory())
    const load = () => Buffer.alloc(512)
    pool.edit(1024, FIRST, load)[0] = 1
    pool.edit(512, LAST, load)[0] = 2
    const slices = pool.collect()
    t.same(
      slices.map(({ at, stage, bytes }) => [at, stage, bytes[0]]),
      [
        [512, LAST, 2],
        [1024, FIRST, 1],
      ],
    )
    pool.edit(512, LAST, load)[0] = 3
    t.equal(slices[0]?.bytes[0], 2)
    pool.flushed(slices)
    t.equal(pool.dirty, 1)
    t.same(
      pool.collect().map(({ at, bytes }) => [at, bytes[0]]),
      [[512, 3]],
    )
  },
)

t.test('room is made of clean slices, never of dirty ones', async t => {
  const pool = new TablePool(createPoolMemory())
  const load = () => Buffer.alloc(SLICE)
  let count = 0
  while (pool.hasCapacity(1)) pool.edit(SLICE * count++, LAST, load)
  t.equal(pool.dirty, count)
  t.throws(() => pool.edit(SLICE * count, LAST, load), /no room/)
  const half = pool.collect().slice(0, count / 2)
  pool.flushed(half)
  t.ok(pool.hasCapacity(count / 2))
  t.notOk(pool.hasCapacity(count / 2 + 1))
  t.equal(pool.find(0), undefined)
  t.equal(pool.collect().length, count - half.length)
})

t.test('a cached slice is void when its table changed, went or was replaced', async t => {
  const pool = new TablePool(createPoolMemory())
  const cache = new MetadataCache(2 ** 20, new Float64Array(STATISTICS), pool)
  const store = new MemoryStore('/tables', Buffer.alloc(SLICE * 4, 1))
  const read = () => cache.slice(store, 0, SLICE, SLICE)[0]
  t.equal(read(), 1)
  pool.edit(SLICE, LAST, () => cache.slice(store, 0, SLICE, SLICE))[0] = 2
  t.equal(read(), 2)
  const slices = pool.collect()
  for (const { bytes, at } of slices) store.write(bytes, 0, bytes.length, at)
  pool.flushed(slices)
  t.ok(pool.hasCapacity(1024), 'all are clean and go')
  t.equal(pool.find(SLICE), undefined)
  t.equal(read(), 2)
  store.write(Buffer.alloc(SLICE, 3), 0, SLICE, SLICE)
  pool.forget(SLICE, SLICE)
  t.equal(read(), 3)
})

const step = fc.oneof(
  {
    weight: 10,
    arbitrary: fc.record({ edit: fc.nat(2000), value: fc.integer({ min: 1, max: 255 }) }),
  },
  { weight: 2, arbitrary: fc.constant('flush' as const) },
  { weight: 1, arbitrary: fc.record({ forget: fc.nat(2000) }) },
)

t.test('like a map of places, whatever is done in whatever order', async () => {
  await holds(fc.array(step, { maxLength: 300 }), 300, steps => {
    const pool = new TablePool(createPoolMemory())
    const file = new Map<number, number>()
    const model = new Map<number, number>()
    const flush = () => {
      const slices = pool.collect()
      for (const { at, bytes } of slices) file.set(at, bytes[0] as number)
      pool.flushed(slices)
    }
    for (const s of steps) {
      if (s === 'flush') flush()
      else if ('edit' in s) {
        if (!pool.hasCapacity(1)) flush()
        const at = s.edit * SLICE
        pool.edit(at, LAST, () => Buffer.alloc(SLICE, file.get(at) ?? 0))[0] = s.value
        model.set(at, s.value)
      } else {
        // The table that was there has gone: a new one of zeros is in the file.
        pool.forget(s.forget * SLICE, SLICE)
        file.set(s.forget * SLICE, 0)
        model.set(s.forget * SLICE, 0)
      }
      for (const [at, value] of model) {
        const found = pool.find(at)?.[0] ?? file.get(at)
        if (found !== value) throw new Error(`${at}: ${found} instead of ${value}`)
      }
    }
  })
})
