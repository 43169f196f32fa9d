/** The lock of a disk: who is alone is alone, and no stripe is read while it is written. */
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { createLockMemory, DiskLock } from '../../src/formats/disk-lock.js'

const THREADS = 4
const ROUNDS = 20_000

t.test('several threads', async t => {
  const lock = createLockMemory(THREADS)
  // Few blocks, so that they meet often; two words for who is alone and who is not.
  const shared = new SharedArrayBuffer(4 * (8 + 2))
  const workers = Array.from({ length: THREADS }, (_, thread) => {
    const workerData = { lock, shared, thread, rounds: ROUNDS }
    return new Worker(new URL('./disk-lock-worker.ts', import.meta.url), { workerData })
  })
  t.teardown(() => Promise.all(workers.map(worker => worker.terminate())))
  const faults = await Promise.all(workers.map(async worker => (await once(worker, 'message'))[0]))
  t.same(faults.flat(), [])
  const words = [...new Int32Array(lock)]
  t.same(new Set(words), new Set([0]), 'nobody holds or waits for anything')
})

t.test('one thread waits for nobody', async t => {
  const disk = new DiskLock(createLockMemory(3), 2)
  for (const length of [0, 1, 512, 16384, 2 ** 20, 2 ** 40]) {
    for (const offset of [0, 29 * 16384, 30 * 16384, 2 ** 52]) {
      disk.share(offset, length, true)
      disk.unshare()
      disk.share(offset, length, false)
      disk.unshare()
    }
  }
  disk.takeFlush()
  disk.take()
  disk.untake()
  disk.untakeFlush()
  t.pass()
})
