/** Starts the thread that tells the kernel to drop pages; see page-drop-thread.ts. */
import { Worker } from 'node:worker_threads'
import type { PageDropSetup } from './page-drop-thread.js'

/**
 * Starts the thread. It does not keep the process alive. Resolves when the thread serves, or when it has died.
 */
export function startPageDropper(
  setup: PageDropSetup,
  onError: (error: Error) => void,
): Promise<void> {
  const thread = new Worker(new URL('./page-drop-thread.js', import.meta.url), {
    workerData: setup,
    resourceLimits: { maxYoungGenerationSizeMb: 2 },
  })
  thread.unref()
  // Without it writers wait for a bounded time and go on.
  thread.on('error', onError)
  return new Promise(resolve => {
    thread.once('message', resolve)
    thread.once('exit', () => resolve())
  })
}
