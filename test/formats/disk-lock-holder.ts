/** A thread of disk-lock.test.ts that holds the disk until it is told to let go, or dies with it. */
import { parentPort, workerData } from 'node:worker_threads'
import { DiskLock } from '../../src/image/writing/disk-lock.js'

const { lock, thread, side, letGo } = workerData
const disk = new DiskLock(lock, thread)
if (side === 'exclusive') disk.acquire()
else if (side === 'flush') disk.acquireFlush()
else disk.acquireShared(0, 512, true)
parentPort?.postMessage('held')
if (letGo) {
  Atomics.wait(new Int32Array(letGo), 0, 0)
  if (side === 'exclusive') disk.release()
  else if (side === 'flush') disk.releaseFlush()
  else disk.releaseShared()
}
