/**
 * Exercises images in another thread. All reading is synchronous, so only another thread can notice and end a hang.
 */
import { Worker } from 'node:worker_threads'
import type { Test } from 'tap'
import type { HostileOptions, Outcome } from './exercise.js'
import { cpuMs } from './cpu.js'

const LOOK_MS = 200
/** Only ends what waits for something that never comes. */
const QUIET_MS = 180_000

export interface Watched extends Outcome {
  /** Milliseconds of processor time. */
  readonly milliseconds: number
  /** Whether it took too long. */
  readonly hangs: boolean
  /** By how many bytes the process has grown. */
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
    const started = cpuMs()
    const outcome = await answerOf(worker, { path, options }, limitMs)
    const milliseconds = cpuMs() - started
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

/** Undefined when there was none within `limitMs` of processor time, or while nothing was done for minutes. */
function answerOf(worker: Worker, message: unknown, limitMs: number): Promise<Outcome | undefined> {
  return new Promise((resolve, reject) => {
    const started = { cpu: cpuMs(), wall: performance.now() }
    const timer = setInterval(() => {
      const isQuiet = performance.now() - started.wall > QUIET_MS
      if (isQuiet || cpuMs() - started.cpu > limitMs) done(undefined)
    }, LOOK_MS)
    const done = (outcome: Outcome | undefined) => {
      clearInterval(timer)
      worker.off('error', reject)
      worker.removeAllListeners('message')
      resolve(outcome)
    }
    worker.once('error', reject).once('message', done)
    worker.postMessage(message)
  })
}
