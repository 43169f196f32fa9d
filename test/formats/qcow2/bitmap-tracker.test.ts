import { Worker } from 'node:worker_threads'
import fc from 'fast-check'
import t from 'tap'
import type { BitmapMemory } from '../../../src/formats/qcow2/bitmap-memory.js'
import { BitmapTracker } from '../../../src/formats/qcow2/bitmap-tracker.js'
import { holds } from '../../support/property.js'

const CLUSTER = 512

/** Bitmaps that record, of these granularities, each with `bitBytes` bytes of bits. */
function memoryOf(granularityBits: readonly number[], bitBytes: number): BitmapMemory {
  return {
    clusterBytes: CLUSTER,
    sizeBytes: 0,
    areLost: false,
    marks: new SharedArrayBuffer(4 * (granularityBits.length + 1)),
    warnings: [],
    bitmaps: granularityBits.map(bits => ({
      name: `of ${bits}`,
      entryAt: 0,
      flags: 2,
      granularityBits: bits,
      tableAt: 0,
      tableEntries: 0,
      problem: '',
      record: {
        bits: new SharedArrayBuffer(bitBytes),
        changed: new SharedArrayBuffer(Math.ceil(bitBytes / CLUSTER)),
      },
    })),
  }
}

function bitsOf(memory: BitmapMemory, index: number): number[] {
  const bytes = Buffer.from(memory.bitmaps[index]!.record!.bits)
  const set: number[] = []
  for (let i = 0; i < bytes.length * 8; i++) if ((bytes[i >> 3]! >> (i & 7)) & 1) set.push(i)
  return set
}

t.test('a write sets the bits of its range, and says which clusters changed', async t => {
  const G = 2 ** 16
  const cases = [
    { title: 'nothing', offset: 5, length: 0, bits: [] },
    { title: 'one byte', offset: 0, length: 1, bits: [0] },
    { title: 'the last byte of a piece', offset: G - 1, length: 1, bits: [0] },
    { title: 'two pieces by a byte each', offset: G - 1, length: 2, bits: [0, 1] },
    { title: 'pieces of two bytes of bits', offset: 7 * G, length: 2 * G, bits: [7, 8] },
    { title: 'whole bytes between', offset: 6 * G, length: 12 * G, bits: range(6, 18) },
    { title: 'the second cluster', offset: 4096 * G, length: 1, bits: [4096], changed: [1] },
    {
      title: 'both clusters',
      offset: 4095 * G,
      length: 2 * G,
      bits: [4095, 4096],
      changed: [0, 1],
    },
    {
      title: 'more than there is room for',
      offset: 8190 * G,
      length: 9 * G,
      bits: [8190, 8191],
      changed: [1],
    },
    { title: 'past all room', offset: 2 ** 52, length: 9 * G, bits: [], changed: [] },
  ]
  for (const { title, offset, length, bits, changed = length > 0 ? [0] : [] } of cases) {
    t.test(title, async t => {
      const memory = memoryOf([16], 2 * CLUSTER)
      new BitmapTracker(memory).mark(offset, length)
      t.same(bitsOf(memory, 0), bits)
      const flags = [...new Uint8Array(memory.bitmaps[0]!.record!.changed)]
      t.same(
        flags.flatMap((flag, chunk) => (flag ? [chunk] : [])),
        changed,
      )
    })
  }
})

t.test('any writes, in bitmaps of several granularities', async t => {
  const sizeBytes = 2 ** 22
  const write = fc
    .tuple(fc.nat(sizeBytes - 1), fc.oneof(fc.nat(2000), fc.nat(sizeBytes)))
    .map(([offset, length]) => ({ offset, length: Math.min(length, sizeBytes - offset) }))
  await holds(fc.array(write, { maxLength: 6 }), 500, writes => {
    const granularities = [9, 13, 16, 31]
    const memory = memoryOf(granularities, sizeBytes / 512 / 8)
    const tracker = new BitmapTracker(memory)
    for (const { offset, length } of writes) tracker.mark(offset, length)
    granularities.forEach((bits, index) => {
      const model = new Set<number>()
      for (const { offset, length } of writes) {
        if (length === 0) continue
        const last = Math.floor((offset + length - 1) / 2 ** bits)
        for (let i = Math.floor(offset / 2 ** bits); i <= last; i++) model.add(i)
      }
      const found = bitsOf(memory, index)
      if (found.length !== model.size || found.some(bit => !model.has(bit))) {
        throw new Error(`granularity ${bits}: ${found} for ${[...model]}`)
      }
    })
  })
  t.pass('no difference')
})

t.test('threads that mark at once lose no bit', async t => {
  const memory = memoryOf([9], 64 * CLUSTER)
  const pieces = 64 * CLUSTER * 8
  const gate = new SharedArrayBuffer(4)
  const threads = 2
  const ended = [0, 1].map(first => {
    const workerData = { memory, gate, threads, first, pieces, pieceBytes: 512 }
    const worker = new Worker(new URL('./bitmap-marker.ts', import.meta.url), { workerData })
    return new Promise((resolve, reject) => worker.once('exit', resolve).once('error', reject))
  })
  await Promise.all(ended)
  t.equal(bitsOf(memory, 0).length, pieces)
})

function range(from: number, end: number): number[] {
  return Array.from({ length: end - from }, (_, i) => from + i)
}
