/** The lock of a disk: an exclusive holder is alone, and no stripe is read while it is written. */
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { createLockMemory, DiskLock } from '../../src/image/writing/disk-lock.js'

const THREADS = 4
const ROUNDS = 20_000

t.test('several threads', async t => {
  const lock = createLockMemory(THREADS)
  // Few blocks, so that the threads meet often; two words count exclusive and shared holders.
  const shared = new SharedArrayBuffer(4 * (8 + 2))
  const workers = Array.from({ length: THREADS }, (_, thread) => {
    const workerData = { lock, shared, thread, rounds: ROUNDS }
    return new Worker(new URL('./disk-lock-worker.ts', import.meta.url), { workerData })
  })
  t.teardown(() => Promise.all(workers.map(worker => worker.terminate())))
  const faults = await Promise.all(workers.map(async worker => (await once(worker, 'message'))[0]))
  t.same(faults.flat(), [])
  // Behind them are the threads' ids.
  const words = [...new Int32Array(lock)].slice(0, -THREADS)
  t.same(new Set(words), new Set([0]), 'nobody holds or waits for anything')
})

t.test('a single thread never waits', async t => {
  const disk = new DiskLock(createLockMemory(3), 2)
  for (const length of [0, 1, 512, 16384, 2 ** 20, 2 ** 40]) {
    for (const offset of [0, 29 * 16384, 30 * 16384, 2 ** 52]) {
      disk.acquireShared(offset, length, true)
      disk.releaseShared()
      disk.acquireShared(offset, length, false)
      disk.releaseShared()
    }
  }
  disk.acquireFlush()
  disk.acquire()
  disk.release()
  disk.releaseFlush()
  t.pass()
})

const SIDES = ['exclusive', 'shared', 'flush'] as const

/** A lock of two threads whose first one holds a side; resolves once it does. */
async function held(side: (typeof SIDES)[number], letGo?: SharedArrayBuffer) {
  const lock = createLockMemory(2)
  const worker = new Worker(new URL('./disk-lock-holder.ts', import.meta.url), {
    workerData: { lock, thread: 0, side, letGo },
  })
  const ended = once(worker, 'exit')
  await once(worker, 'message')
  return { lock, ended }
}

for (const side of SIDES) {
  t.test(`a slow thread is waited for, however long, and told: ${side}`, async t => {
    const letGo = new SharedArrayBuffer(4)
    const { lock, ended } = await held(side, letGo)
    const stalls: number[] = []
    const watch = {
      stallMs: 300,
      onStall: (seconds: number) => {
        // The third comes after more than a second, when it has been looked whether the other one is alive.
        if (stalls.push(seconds) < 3) return
        Atomics.store(new Int32Array(letGo), 0, 1)
        Atomics.notify(new Int32Array(letGo), 0)
      },
    }
    const disk = new DiskLock(lock, 1, watch)
    if (side === 'flush') disk.acquireFlush()
    else disk.acquireShared(0, 512, true)
    t.equal(stalls.length, 3, 'each report takes twice as long to come')
    await ended
  })

  t.test(`a thread that has died is not: ${side}`, async t => {
    const { lock, ended } = await held(side)
    await ended
    const disk = new DiskLock(lock, 1)
    const act = () => (side === 'flush' ? disk.acquireFlush() : disk.acquireShared(0, 512, true))
    t.throws(act, { message: 'a thread that holds the disk has died' })
  })
}
