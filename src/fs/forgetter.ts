/**
 * Makes the kernel forget what a change has made stale (FUSE_NOTIFY_INVAL_ENTRY, FUSE_NOTIFY_INVAL_INODE). The kernel waits for
 * locks of folders and pages, which requests hold that are not answered yet. So a thread does it that serves none.
 */
import { Worker } from 'node:worker_threads'
import type { ForgetOrder } from './forget-thread.js'

export class Forgetter {
  private thread: Worker | undefined

  /** Resolves when the kernel has forgotten all of it. Rejects if the thread ends. One call at a time. */
  async forget(order: ForgetOrder): Promise<void> {
    const thread = this.started()
    await new Promise<void>((resolve, reject) => {
      const end = (act: () => void) => {
        thread.removeAllListeners()
        act()
      }
      thread.once('message', () => end(resolve))
      thread.once('error', error =>
        end(() => {
          this.thread = undefined
          reject(error)
        }),
      )
      thread.postMessage(order)
    })
  }

  private started(): Worker {
    if (this.thread) return this.thread
    this.thread = new Worker(new URL('./forget-thread.js', import.meta.url), {
      resourceLimits: { maxYoungGenerationSizeMb: 2 },
    })
    this.thread.unref()
    return this.thread
  }
}
