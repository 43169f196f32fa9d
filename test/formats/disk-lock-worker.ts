/** A thread of disk-lock.test.ts: takes sides at random and looks whether it is right. */
import { parentPort, workerData } from 'node:worker_threads'
import { DiskLock } from '../../src/image/writing/disk-lock.js'

const { lock, shared, thread, rounds } = workerData
const words = new Int32Array(shared)
const disk = new DiskLock(lock, thread)
const BLOCKS = words.length - 2
const [ALONE, BESIDE] = [BLOCKS, BLOCKS + 1] as const
let seed = thread + 1
const random = (below: number) => {
  seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0
  return Math.floor((seed / 2 ** 32) * below)
}
const faults: string[] = []
for (let i = 0; i < rounds; i++) {
  const action = random(10)
  if (action === 0) {
    disk.acquire()
    if (Atomics.add(words, ALONE, 1) !== 0) faults.push('two are alone')
    if (Atomics.load(words, BESIDE) !== 0) faults.push('somebody is beside who is alone')
    Atomics.sub(words, ALONE, 1)
    disk.release()
    continue
  }
  const block = random(BLOCKS)
  const writes = action < 5
  disk.acquireShared(block * 16384 + 512, 4096, writes)
  Atomics.add(words, BESIDE, 1)
  if (Atomics.load(words, ALONE) !== 0) faults.push('beside who is alone')
  // Writers leave their number and look for it; readers see no change.
  if (writes) Atomics.store(words, block, thread + 1)
  const before = Atomics.load(words, block)
  for (let spin = 0; spin < 50; spin++) {
    if (Atomics.load(words, block) !== before) faults.push('written under a reader or a writer')
  }
  Atomics.sub(words, BESIDE, 1)
  disk.releaseShared()
}
parentPort?.postMessage(faults.slice(0, 5))
