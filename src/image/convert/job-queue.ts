/**
 * Jobs that one thread adds and several threads do, in shared memory: a ring, in the order of the disk.
 *
 *  (1) A job's fields are written before its state becomes READY.
 *  (2) The thread that changes READY to TAKEN does the job, and no other does.
 *  (3) When `end` returns, no job is READY, or TAKEN by a thread that is alive.
 */
import { currentThread, isThreadAlive } from '../../io/threads.js'
import type { CopyJob } from './copy-job.js'

const FREE = 0
const READY = 1
const DONE = 2
const FAILED = 3
/** The state of a job that helper n does is TAKEN + n; the thread that adds is number 0. */
const TAKEN = 4

/** A power of two: how many jobs are known at once. */
const JOBS = 256
const NUMBERS = 4
/** Numbers of a job; its own numbers follow. */
const FIELDS = 5
const JOB_NUMBERS = FIELDS + NUMBERS
/** Words of `JobMemory.words`: how many jobs were added and taken, whether no more are taken; then each helper's thread. */
const WORD = { added: 0, taken: 1, isEnded: 2, threads: 3 } as const
/** How often a waiting thread looks whether the other one is alive. */
const LOOK_MS = 1000

/** Memory that the threads share. */
export interface JobMemory {
  readonly jobs: SharedArrayBuffer
  readonly states: SharedArrayBuffer
  readonly words: SharedArrayBuffer
}

export const createJobMemory = (helpers: number): JobMemory => ({
  jobs: new SharedArrayBuffer(JOBS * JOB_NUMBERS * 8),
  states: new SharedArrayBuffer(JOBS * 4),
  words: new SharedArrayBuffer((WORD.threads + 1 + helpers) * 4),
})

class Ring {
  protected readonly jobs: Float64Array
  protected readonly states: Int32Array
  protected readonly words: Int32Array

  constructor(memory: JobMemory) {
    this.jobs = new Float64Array(memory.jobs)
    this.states = new Int32Array(memory.states)
    this.words = new Int32Array(memory.words)
  }

  /** Takes the first job that is READY, for the thread with that number. Returns its slot; -1 if there is none. */
  protected take(thread: number): number {
    for (;;) {
      const taken = Atomics.load(this.words, WORD.taken)
      if (taken === Atomics.load(this.words, WORD.added)) return -1
      if (Atomics.compareExchange(this.words, WORD.taken, taken, (taken + 1) | 0) !== taken)
        continue
      const slot = taken & (JOBS - 1)
      if (Atomics.compareExchange(this.states, slot, READY, TAKEN + thread) === READY) return slot // rule (2)
    }
  }

  protected job(slot: number): CopyJob {
    const from = slot * JOB_NUMBERS
    const [offset, length, fd, at, format] = this.jobs.subarray(from, from + FIELDS) as unknown as [
      number,
      number,
      number,
      number,
      number,
    ]
    const numbers = Array.from(this.jobs.subarray(from + FIELDS, from + JOB_NUMBERS))
    return { offset, length, fd, at, format, numbers }
  }

  protected finish(slot: number, isDone: boolean): void {
    Atomics.store(this.states, slot, isDone ? DONE : FAILED)
    Atomics.notify(this.states, slot)
  }
}

/** Does a job. Returns false if it cannot; throws if the target cannot be written. Either way the job counts as not done. */
export interface Runner {
  run(job: CopyJob): boolean
}

function attempt(runner: Runner, job: CopyJob): boolean {
  try {
    return runner.run(job)
  } catch {
    return false
  }
}

/** The side of the thread that adds. */
export class JobQueue extends Ring {
  /** How many jobs have been added, and how many of them have been dropped from the ring. */
  private added = 0
  private dropped = 0

  get isFull(): boolean {
    return this.added - this.dropped === JOBS
  }

  get isEmpty(): boolean {
    return this.added === this.dropped
  }

  /** Adds a job. The queue must not be full. */
  add({ offset, length, fd, at, format, numbers }: CopyJob): void {
    const slot = this.added & (JOBS - 1)
    this.jobs.set([offset, length, fd, at, format, ...numbers], slot * JOB_NUMBERS)
    Atomics.store(this.states, slot, READY) // rule (1)
    this.added++
    Atomics.store(this.words, WORD.added, this.added | 0)
    Atomics.notify(this.words, WORD.added, 1)
  }

  /** Drops the first job if it has ended. Returns that job if it was not done; true if it was; false if it is still in work. */
  drop(): CopyJob | boolean {
    const slot = this.dropped & (JOBS - 1)
    const state = Atomics.load(this.states, slot)
    if (state !== DONE && state !== FAILED) return false
    this.dropped++
    return state === DONE || this.job(slot)
  }

  /** Does the next job that no thread has taken. Returns false if there is none. */
  runOne(runner: Runner): boolean {
    const slot = this.take(0)
    if (slot < 0) return false
    this.finish(slot, attempt(runner, this.job(slot)))
    return true
  }

  /** Waits until the first job has ended, or for a second. Then it counts as failed if its thread has ended without doing it. */
  wait(): void {
    const slot = this.dropped & (JOBS - 1)
    const state = Atomics.load(this.states, slot)
    // No thread has it, and none takes it any more: a helper has counted it as taken, and is about to mark it, or has ended.
    if (state === READY) Atomics.compareExchange(this.states, slot, READY, FAILED)
    else if (this.waits(slot, state)) Atomics.store(this.states, slot, FAILED)
  }

  /** Lets no thread take a job any more, and waits for those that are in work. */
  end(): void {
    Atomics.store(this.words, WORD.isEnded, 1)
    for (let slot = 0; slot < JOBS; slot++) {
      Atomics.compareExchange(this.states, slot, READY, FREE)
      for (;;) {
        const state = Atomics.load(this.states, slot)
        if (state <= TAKEN || this.waits(slot, state)) break
      }
    }
    // The count changes, so that no helper goes on waiting; it finds no job.
    Atomics.add(this.words, WORD.added, 1)
    Atomics.notify(this.words, WORD.added)
  }

  /** Waits until a helper has ended its job, or for a second. Returns true if the helper has ended without that. */
  private waits(slot: number, state: number): boolean {
    if (state <= TAKEN || Atomics.wait(this.states, slot, state, LOOK_MS) !== 'timed-out')
      return false
    const isAlive = isThreadAlive(Atomics.load(this.words, WORD.threads + state - TAKEN))
    return !isAlive && Atomics.load(this.states, slot) === state
  }
}

/** Does jobs as helper number `thread`, from 1 on, until the queue is ended. */
export function serveJobs(memory: JobMemory, thread: number, runner: Runner): void {
  new Server(memory).serve(thread, runner)
}

class Server extends Ring {
  serve(thread: number, runner: Runner): void {
    Atomics.store(this.words, WORD.threads + thread, currentThread())
    while (Atomics.load(this.words, WORD.isEnded) === 0) {
      const added = Atomics.load(this.words, WORD.added)
      const slot = this.take(thread)
      if (slot >= 0) this.finish(slot, attempt(runner, this.job(slot)))
      // If a job was added meanwhile, the word has changed, and this does not wait.
      else Atomics.wait(this.words, WORD.added, added)
    }
  }
}
