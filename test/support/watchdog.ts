/**
 * Exercises images in a thread of their own. All reading is synchronous, so that what hangs can only
 * be seen, and ended, from another thread.
 */
import { Worker } from 'node:worker_threads'
import type { Test } from 'tap'
import type { HostileOptions, Outcome } from './exercise.js'

export interface Watched extends Outcome {
  readonly milliseconds: number
  /** It took longer than it may. */
  readonly hangs: boolean
  /** How much more memory the process has than before. */
  readonly grownBytes: number
}

export class Watchdog {
  private worker: Promise<Worker> | undefined

  constructor(t: Test) {
    t.teardown(() => this.stop())
  }

  async exercise(path: string, options: HostileOptions = {}, limitMs = 5000): Promise<Watched> {
    this.worker ??= startWorker()
    const worker = await this.worker
    const rss = process.memoryUsage.rss()
    const started = performance.now()
    const outcome = await answerOf(worker, { path, options }, limitMs)
    const milliseconds = performance.now() - started
    const grownBytes = process.memoryUsage.rss() - rss
    if (outcome !== undefined) return { ...outcome, milliseconds, hangs: false, grownBytes }
    await this.stop()
    return { damages: 0, unexpected: [], names: [], milliseconds, hangs: true, grownBytes }
  }

  private async stop(): Promise<void> {
    const worker = await this.worker
    this.worker = undefined
    await worker?.terminate()
  }
}

async function startWorker(): Promise<Worker> {
  const worker = new Worker(new URL('./exercise-worker.ts', import.meta.url))
  await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
  worker.removeAllListeners('error')
  return worker
}

/** Undefined when there was none in time. */
function answerOf(worker: Worker, message: unknown, limitMs: number): Promise<Outcome | undefined> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => done(undefined), limitMs)
    const done = (outcome: Outcome | undefined) => {
      clearTimeout(timer)
      worker.off('error', reject)
      worker.removeAllListeners('message')
      resolve(outcome)
    }
    worker.once('error', reject).once('message', done)
    worker.postMessage(message)
  })
}
