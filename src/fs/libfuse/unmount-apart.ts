/** Unmounts in a separate thread: unmounting writes back mapped pages, and the main thread has to answer those writes. */
import { Worker } from 'node:worker_threads'
import { MountError } from '../../errors.js'
import type { MountInfo } from '../../io/mountinfo.js'
import type { UnmountJob } from './unmounter.js'

/** Calls `unmountFuse` in a separate thread. Throws MountError with the reason. */
export function unmountApart(mount: MountInfo, detach: boolean): Promise<void> {
  const thread = new Worker(new URL('./unmounter.js', import.meta.url), {
    workerData: { mount, detach } satisfies UnmountJob,
  })
  return new Promise((resolve, reject) => {
    thread.once('error', reject)
    thread.once('message', (failure: string | undefined) => {
      if (failure === undefined) resolve()
      else reject(new MountError(failure))
    })
  })
}
