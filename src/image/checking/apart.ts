/** Runs long work on an image in a thread of its own, so that this thread can take signals meanwhile. */
import fs from 'node:fs'
import { Worker } from 'node:worker_threads'
import { MountError } from '../../errors.js'
import type { LayerSpec } from '../../formats/format.js'
import type { ApartMessage, ResultOf, SetupOf, TaskName } from './apart-tasks.js'
import { filesOf } from '../layer.js'
import { receivedError } from '../sent-error.js'

/** Work on larger images, in bytes that their files take, may last seconds. */
const APART_FROM_BYTES = 64 * 2 ** 20
const STAT_BLOCK_BYTES = 512
const CANCELLED = 'the command that asked for it has ended, so it was not finished'

/** Reports whether work on all tables of an image is worth a thread, which takes a tenth of a second to start. */
export function isLongWork(layer: LayerSpec): boolean {
  const bytes = ({ fd }: { fd: number }) => fs.fstatSync(fd).blocks * STAT_BLOCK_BYTES
  return filesOf(layer).reduce((sum, file) => sum + bytes(file), 0) >= APART_FROM_BYTES
}

/**
 * Runs a task. All files in `setup` must stay open until it ends. Throws what the task throws.
 * @param setup plain data: it is copied
 * @param cancel ends the thread when it is aborted, in the middle of its work: only for tasks that change nothing
 */
export function runApart<N extends TaskName>(
  task: N,
  setup: SetupOf<N>,
  progress: (part: number) => void = () => {},
  cancel?: AbortSignal,
): Promise<ResultOf<N>> {
  const workerData = { task, setup }
  const thread = new Worker(new URL('./apart-thread.js', import.meta.url), { workerData })
  return new Promise((resolve, reject) => {
    thread.on('message', (message: ApartMessage) => {
      if ('part' in message) progress(message.part)
      else if ('result' in message) resolve(message.result as ResultOf<N>)
      else reject(receivedError(message.error))
    })
    thread.on('error', reject)
    const end = () => {
      // The files may be closed when the thread has ended.
      void thread.terminate().then(() => reject(new MountError(CANCELLED)))
    }
    thread.on('exit', () => cancel?.removeEventListener('abort', end))
    if (cancel?.aborted) end()
    else cancel?.addEventListener('abort', end)
    // After a result this changes nothing.
    thread.on('exit', code => {
      if (!cancel?.aborted) reject(new Error(`the thread "${task}" ended with code ${code}`))
    })
  })
}
