/** The thread that unmounts; see unmount-apart.ts. */
import { parentPort, workerData } from 'node:worker_threads'
import { MountError } from '../../errors.js'
import type { MountInfo } from '../../io/mountinfo.js'
import { unmountFuse } from '../mounting/mount.js'

export interface UnmountJob {
  readonly mount: MountInfo
  readonly detach: boolean
}

const { mount, detach } = workerData as UnmountJob
try {
  unmountFuse(mount, detach)
  parentPort?.postMessage(undefined)
} catch (error) {
  if (!(error instanceof MountError)) throw error
  parentPort?.postMessage(error.message)
}
