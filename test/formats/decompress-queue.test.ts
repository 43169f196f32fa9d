import { Worker } from 'node:worker_threads'
import zlib from 'node:zlib'
import t from 'tap'
import type { Extent } from '../../src/formats/driver.js'
import {
  type QueueMemory,
  queueMemories,
  JOB_WORDS,
  DecompressQueue,
} from '../../src/image/reading/decompress-queue.js'
import { ImageError } from '../../src/errors.js'

const CLUSTER_BYTES = 64 * 1024
const OFFSET = 16

type Packed = Extent & { kind: 'packed' }

/** A cluster filled with `letter`, unpacked by this thread; an error stands for damage. */
function extentOf(letter: string, unpacked: string[], failure?: Error): Packed {
  return {
    kind: 'packed',
    length: CLUSTER_BYTES,
    skip: 0,
    wholeBytes: CLUSTER_BYTES,
    job: { format: 'qcow2', storeId: 0, numbers: [4096, 512, 0] },
    unpack: () => Buffer.alloc(CLUSTER_BYTES, letter),
    unpackInto: target => {
      unpacked.push(letter)
      if (failure) throw failure
      target.fill(letter)
    },
  }
}

function queueOf(clusters: number): {
  queue: DecompressQueue
  memory: QueueMemory
  target: Buffer
  calls: number[]
} {
  const [memory] = queueMemories(1, OFFSET + clusters * CLUSTER_BYTES) as [QueueMemory]
  const target = Buffer.from(memory.target).subarray(OFFSET)
  const calls: number[] = []
  return {
    queue: new DecompressQueue(memory, target, OFFSET, () => calls.push(1)),
    memory,
    target,
    calls,
  }
}

t.test('a worker whose helper has not come yet does all of it', async t => {
  const { queue, target, calls } = queueOf(3)
  const unpacked: string[] = []
  for (const [index, letter] of ['a', 'b', 'c'].entries()) {
    t.ok(queue.add(extentOf(letter, unpacked), index * CLUSTER_BYTES, 0))
  }
  queue.finish()
  t.same(unpacked, ['a', 'b', 'c'])
  t.same(calls, [1], 'the helper is called once')
  for (const [index, letter] of ['a', 'b', 'c'].entries()) {
    const cluster = target.subarray(index * CLUSTER_BYTES, (index + 1) * CLUSTER_BYTES)
    t.ok(cluster.equals(Buffer.alloc(CLUSTER_BYTES, letter)), letter)
  }
})

t.test('damage is thrown once no job runs, and the next read starts clean', async t => {
  const { queue, target } = queueOf(2)
  const unpacked: string[] = []
  const damage = new ImageError('CORRUPT', 'damaged')
  queue.add(extentOf('a', unpacked, damage), 0, 0)
  queue.add(extentOf('b', unpacked), CLUSTER_BYTES, 0)
  t.throws(() => queue.finish(), damage)
  queue.add(extentOf('c', unpacked), 0, 0)
  queue.finish()
  t.ok(target.subarray(0, CLUSTER_BYTES).equals(Buffer.alloc(CLUSTER_BYTES, 'c')))
  t.notOk(target.includes('b'), 'after the damage nothing else was unpacked')
})

t.test('the caller unpacks small clusters, and those that find no room, itself', async t => {
  const { queue } = queueOf(1)
  t.notOk(queue.add({ ...extentOf('a', []), length: 4096 }, 0, 0), 'a small cluster')
  for (let job = 0; job < 64; job++) t.ok(queue.add(extentOf('a', []), 0, 0))
  t.notOk(queue.add(extentOf('a', []), 0, 0), 'a job more than the board has')
  queue.finish()
})

/**
 * The helper's protocol, spoken by the test: it takes the last job as the helper would, and ends it
 * while the worker waits.
 */
const OTHER_SIDE = `
  const { workerData, parentPort } = require('node:worker_threads')
  const board = new Int32Array(workerData.board)
  const id = Number(require('node:fs').readlinkSync('/proc/thread-self').split('/').at(-1))
  Atomics.store(new Int32Array(workerData.call), 1, id)
  const job = workerData.job
  Atomics.store(board, job, 2)
  parentPort.postMessage('taken')
  if (workerData.state !== 0) setTimeout(() => {
    if (workerData.state === 3) Buffer.from(workerData.target).fill('h', board[job + 2], board[job + 2] + board[job + 3])
    Atomics.store(board, job, workerData.state)
    Atomics.notify(board, job)
  }, workerData.milliseconds)`

for (const { title, state, letter, milliseconds = 200 } of [
  { title: 'a cluster that the helper took is waited for', state: 3, letter: 'h' },
  { title: 'also when that takes long', state: 3, letter: 'h', milliseconds: 2500 },
  { title: 'a cluster that the helper could not unpack is unpacked here', state: 4, letter: 'b' },
  { title: 'a cluster that the helper died with is, too', state: 0, letter: 'b' },
]) {
  t.test(title, async t => {
    const { queue, memory, target } = queueOf(2)
    const unpacked: string[] = []
    queue.add(extentOf('a', unpacked), 0, 0)
    queue.add(extentOf('b', unpacked), CLUSTER_BYTES, 0)
    const workerData = { ...memory, job: JOB_WORDS, state, milliseconds }
    const other = new Worker(OTHER_SIDE, { eval: true, workerData })
    await new Promise(resolve => other.once('message', resolve))
    queue.finish()
    t.equal(target.subarray(0, CLUSTER_BYTES).toString('latin1', 0, 1), 'a')
    t.ok(target.subarray(CLUSTER_BYTES).equals(Buffer.alloc(CLUSTER_BYTES, letter)))
    await other.terminate()
  })
}

const CLUSTER = Buffer.alloc(CLUSTER_BYTES, 'from the file ')

/** The marker of the grain at 5 TiB, and its stream. */
function grainAt(offset: number): Buffer {
  const stream = zlib.deflateSync(CLUSTER)
  const marker = Buffer.alloc(12)
  marker.writeBigUInt64LE(BigInt(offset / 512))
  marker.writeUInt32LE(stream.length, 8)
  return Buffer.concat([marker, stream])
}

const GRAIN_AT = 5 * 2 ** 40
for (const { format, packed, more } of [
  { format: 'qcow2', packed: zlib.deflateRawSync(CLUSTER, { windowBits: 12 }), more: [0] },
  { format: 'vmdk', packed: grainAt(GRAIN_AT), more: [GRAIN_AT, CLUSTER_BYTES] },
]) {
  t.test(`the helper unpacks the stream in the file: ${format}`, async t => {
    const { queue, memory, target } = queueOf(1)
    const cluster = CLUSTER
    const folder = t.testdir({
      image: Buffer.concat([Buffer.alloc(4096), packed, Buffer.alloc(512)]),
    })
    const helper = new Worker(new URL('./decompress-queue-helper.ts', import.meta.url), {
      workerData: { memory, path: `${folder}/image` },
    })
    t.teardown(() => helper.terminate())
    await new Promise(resolve => helper.once('online', resolve))
    const mine: string[] = []
    const packedExtent = {
      ...extentOf('w', mine),
      job: { format, storeId: 0, numbers: [4096, packed.length, ...more] },
    }
    // It takes a while to come; until then the worker does the job itself.
    for (let round = 0; round < 1000; round++) {
      mine.length = 0
      queue.add(packedExtent, 0, 0)
      await new Promise(resolve => setTimeout(resolve, 10))
      queue.finish()
      const expected = mine.length > 0 ? Buffer.alloc(CLUSTER_BYTES, 'w') : cluster
      if (!target.equals(expected))
        return t.fail("a cluster is neither the worker's nor the file's")
      if (mine.length === 0) return t.pass('the helper did it')
    }
    t.fail('the helper never came')
  })
}
