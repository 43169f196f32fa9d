/**
 * Makes the kernel forget what a change has made stale (FUSE_NOTIFY_INVAL_ENTRY, FUSE_NOTIFY_INVAL_INODE). The kernel waits for
 * locks of folders and pages, which requests hold that are not answered yet. So a thread does it that serves none.
 */
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import type { ForgetOrder } from './forget-thread.js'

export class Forgetter {
  private thread: Worker | undefined

  /** Resolves when the kernel has forgotten all of it. Rejects if the thread ends. One call at a time. */
  async forget(order: ForgetOrder): Promise<void> {
    const thread = this.started()
    thread.postMessage(order)
    try {
      // An error rejects, too.
      await once(thread, 'message')
    } catch (error) {
      this.thread = undefined
      throw error
    }
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
