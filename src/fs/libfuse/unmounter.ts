/**
 * The thread that unmounts. Unmounting writes back mapped pages, and the main thread has to answer those writes.
 */
import { parentPort, Worker, workerData } from 'node:worker_threads'
import { MountError } from '../../errors.js'
import { unmountFuse } from '../mount.js'
import type { MountInfo } from '../../io/mountinfo.js'

interface Job {
  readonly mount: MountInfo
  readonly detach: boolean
}

/** Calls `unmountFuse` in a separate thread. Throws MountError with the reason. */
export function unmountApart(mount: MountInfo, detach: boolean): Promise<void> {
  const workerData: Job = { mount, detach }
  const thread = new Worker(new URL(import.meta.url), { workerData })
  return new Promise((resolve, reject) => {
    thread.once('error', reject)
    thread.once('message', (failure: string | undefined) => {
      if (failure === undefined) resolve()
      else reject(new MountError(failure))
    })
  })
}

if (parentPort) {
  const { mount, detach } = workerData as Job
  try {
    unmountFuse(mount, detach)
    parentPort.postMessage(undefined)
  } catch (error) {
    if (!(error instanceof MountError)) throw error
    parentPort.postMessage(error.message)
  }
}
