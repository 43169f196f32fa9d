/** The parts of a disk that can share blocks with its files. */
import t from 'tap'
import type { Extent, View } from '../../../src/formats/driver.js'
import { planLayout } from '../../../src/image/layout/plan.js'
import { mostParts } from '../../../src/image/layout/lay-out.js'
import { FileStore } from '../../../src/io/store.js'
import { MemoryStore } from '../../support/stores.js'

const BLOCK = 4096
const UNIT = 65536
const FILE = new FileStore('a', 7, 100 * UNIT)

/** A disk of these extents, one after the other. */
function viewOf(extents: readonly Extent[]): View {
  const sizeBytes = extents.reduce((sum, { length }) => sum + length, 0)
  const lookup = (offset: number): Extent => {
    let at = 0
    for (const extent of extents) {
      if (at === offset) return extent
      at += extent.length
    }
    throw new Error('between extents')
  }
  return { driver: { sizeBytes, unitBytes: UNIT, lookup }, parent: undefined }
}

const data = (at: number, length: number, store = FILE): Extent => ({
  ...{ kind: 'data', store, at, length },
})
const packed = (length: number): Extent => ({
  ...{ kind: 'packed', length, skip: 0, wholeBytes: length },
  job: { format: 'qcow2', storeId: 0, numbers: [] },
  unpack: () => Buffer.alloc(length),
  unpackInto: () => {},
})
const zero = (length: number): Extent => ({ kind: 'zero', length })

function plan(extents: readonly Extent[], copiedBytes = 0, parts = 100) {
  const view = viewOf(extents)
  const limits = { blockBytes: BLOCK, copiedBytes, parts, isLate: () => false }
  return planLayout(view, view.driver.sizeBytes, limits)
}

t.test('plain pieces are shared, and joined where both places follow', async t => {
  const found = plan([data(UNIT, UNIT), data(2 * UNIT, UNIT), zero(UNIT), data(UNIT, UNIT)])
  t.strictSame(found, {
    shared: [
      { fd: 7, at: UNIT, offset: 0, length: 2 * UNIT },
      { fd: 7, at: UNIT, offset: 3 * UNIT, length: UNIT },
    ],
    copied: [],
    sharedBytes: 3 * UNIT,
  })
})

t.test('the end of a disk and of a file are copied', async t => {
  const odd = new FileStore('a', 7, UNIT + 5000)
  t.strictSame(plan([data(0, UNIT + 512, odd)]), {
    shared: [{ fd: 7, at: 0, offset: 0, length: UNIT }],
    copied: [{ offset: UNIT, length: 512 }],
    sharedBytes: UNIT,
  })
  t.match(plan([data(UNIT, UNIT, odd)]), {
    shared: [{ at: UNIT, offset: 0, length: 4096 }],
    copied: [{ offset: 4096, length: 904 }],
  })
  t.equal(plan([data(2 * UNIT, UNIT, odd)]), 'lost')
})

t.test('what cannot be shared is copied up to the limit', async t => {
  t.equal(plan([packed(UNIT)]), 'packed')
  t.equal(plan([packed(UNIT)], UNIT - 1), 'packed')
  t.match(plan([zero(UNIT), packed(UNIT)], UNIT), { copied: [{ offset: UNIT, length: UNIT }] })
  const cipher = new MemoryStore('m') as unknown as FileStore
  t.equal(plan([data(0, UNIT, cipher)]), 'packed')
  t.match(plan([data(0, UNIT, cipher)], UNIT), { copied: [{ offset: 0, length: UNIT }] })
  t.equal(plan([data(512, UNIT)]), 'unaligned')
  t.match(plan([data(512, UNIT)], UNIT), { copied: [{ offset: 0, length: UNIT }] })
  const small = Array.from({ length: 100 }, (_, i) => data(i * 2 * BLOCK, 2048))
  t.equal(plan(small), 'unaligned', 'too many ends of pieces')
})

t.test('too many pieces, and too slow', async t => {
  const pieces = [data(4 * UNIT, UNIT), data(0, UNIT), data(8 * UNIT, UNIT)]
  t.equal(plan(pieces, 0, 2), 'pieces')
  t.type(plan(pieces, 0, 3), 'object')
  const view = viewOf(Array.from({ length: 300 }, () => zero(UNIT)))
  const limits = { blockBytes: BLOCK, copiedBytes: 0, parts: 1, isLate: () => true }
  t.equal(planLayout(view, view.driver.sizeBytes, limits), 'slow')
  t.ok(mostParts(2 ** 30) >= 16_384, 'a GiB in clusters of 64 KiB')
  t.ok(mostParts(2 ** 30) < 50_000)
  t.equal(mostParts(2 ** 40), mostParts(2 ** 50), 'there is an end')
})
