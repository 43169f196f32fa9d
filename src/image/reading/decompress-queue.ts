/**
 * Decompresses the clusters of one read on two processors: the worker that answers the read takes clusters from the front, a
 * helper thread takes them from the back.
 *
 *  (1) A job's fields are written before its state becomes READY.
 *  (2) The thread that changes READY to TAKEN does the job. No other thread touches its target.
 *  (3) When `finish` returns or throws, no job is READY, or TAKEN by a thread that is alive. So the target may be used again.
 *
 * The helper keeps no state between jobs. If it comes late, it finds nothing READY and sleeps.
 */
import { atOffset } from '../../errors.js'
import type { Store } from '../../io/store.js'
import { currentThread, isThreadAlive } from '../../io/threads.js'
import type { Extent } from '../../formats/driver.js'
import { FORMAT_NAMES, findFormat } from '../../formats/registry.js'

type Packed = Extent & { kind: 'packed' }

const READY = 1
const TAKEN = 2
const DONE = 3
const FAILED = 4

/** The clusters of 16 KiB in a read of 1 MiB. Smaller clusters are not worth handing over. */
const MAX_JOBS = 64
const MIN_CLUSTER_BYTES = 16 * 1024
const NUMBERS = 4
/** Words of 32 bits: state, store, target, cluster, format, and the numbers of the job (low, high). */
const WORD = { state: 0, store: 1, target: 2, cluster: 3, format: 4, numbers: 5 } as const
export const JOB_WORDS = WORD.numbers + 2 * NUMBERS
/** How often a waiting worker looks whether the helper is alive. */
const LOOK_MS = 1000
/** Words of `QueueMemory.call`. */
const CALL = { jobs: 0, helper: 1 } as const

/** The memory that a worker and the helper share. */
export interface QueueMemory {
  /**
   * The same for all workers: a word that changes when one of them adds a job, and the kernel's id of the helper's thread.
   */
  readonly call: SharedArrayBuffer
  readonly board: SharedArrayBuffer
  readonly target: SharedArrayBuffer
}

/** @param targetBytes the size of each worker's target */
export function queueMemories(workers: number, targetBytes: number): QueueMemory[] {
  const call = new SharedArrayBuffer(4 * Object.keys(CALL).length)
  return Array.from({ length: workers }, () => ({
    call,
    board: new SharedArrayBuffer(MAX_JOBS * JOB_WORDS * 4),
    target: new SharedArrayBuffer(targetBytes),
  }))
}

/** The worker's side. */
export class DecompressQueue {
  private readonly board: Int32Array
  private readonly call: Int32Array
  private readonly jobs: { readonly extent: Packed; readonly offset: number }[] = []
  private isCalled = false

  /**
   * @param target the part of `memory.target` to which the places of `add` refer
   * @param targetOffset where it begins in `memory.target`, in bytes
   * @param callHelper starts the helper thread; called once, with the first job
   */
  constructor(
    memory: QueueMemory,
    private readonly target: Buffer,
    private readonly targetOffset: number,
    private readonly callHelper: () => void,
  ) {
    this.board = new Int32Array(memory.board)
    this.call = new Int32Array(memory.call)
  }

  /**
   * Takes over unpacking `extent`'s cluster, of the disk's `offset`, to `to` of the target. Returns false if that is not worth it.
   */
  add(extent: Packed, to: number, offset: number): boolean {
    if (extent.length < MIN_CLUSTER_BYTES || this.jobs.length === MAX_JOBS) return false
    const { storeId, format, numbers } = extent.job
    const words = [storeId, this.targetOffset + to, extent.length, FORMAT_NAMES.indexOf(format)]
    for (const number of numbers) words.push((number % 2 ** 32) | 0, Math.floor(number / 2 ** 32))
    if (!this.isCalled) this.callHelper()
    this.isCalled = true
    const job = this.jobs.length * JOB_WORDS
    this.board.set(words, job + 1)
    this.jobs.push({ extent, offset })
    Atomics.store(this.board, job, READY) // rule (1)
    Atomics.add(this.call, CALL.jobs, 1)
    Atomics.notify(this.call, CALL.jobs)
    return true
  }

  /** Does the jobs that the helper has not taken, and waits for the others. Throws ImageError as `unpackInto` does. */
  finish(): void {
    let failure: unknown
    this.jobs.forEach(({ extent, offset }, index) => {
      const job = index * JOB_WORDS
      if (Atomics.compareExchange(this.board, job, READY, TAKEN) !== READY) return
      try {
        if (failure === undefined) this.unpack(extent, offset, job)
      } catch (error) {
        failure = error
      }
      Atomics.store(this.board, job, DONE)
    })
    this.jobs.forEach(({ extent, offset }, index) => {
      const job = index * JOB_WORDS
      const isDone = this.waitFor(job)
      try {
        // A job that failed in the helper fails here, too, with an error that names the place on the disk.
        if (!isDone && failure === undefined) this.unpack(extent, offset, job)
      } catch (error) {
        failure = error
      }
    })
    this.jobs.length = 0
    if (failure !== undefined) throw failure
  }

  private unpack(extent: Packed, offset: number, job: number): void {
    const to = (this.board[job + WORD.target] as number) - this.targetOffset
    try {
      extent.unpackInto(this.target.subarray(to, to + extent.length))
    } catch (error) {
      throw atOffset(error, offset)
    }
  }

  private waitFor(job: number): boolean {
    while (Atomics.load(this.board, job) === TAKEN) {
      if (Atomics.wait(this.board, job, TAKEN, LOOK_MS) !== 'timed-out') continue
      // Wait for a slow helper, which still writes to the target. The worker does the jobs of a dead one.
      if (!isThreadAlive(Atomics.load(this.call, CALL.helper))) break
    }
    return Atomics.load(this.board, job) === DONE
  }
}

/** Runs the helper's side, for all workers. Never returns. */
export function serveQueues(memories: readonly QueueMemory[], stores: readonly Store[]): never {
  const queues = memories.map(({ board, target }) => ({
    board: new Int32Array(board),
    target: Buffer.from(target),
  }))
  const call = new Int32Array((memories[0] as QueueMemory).call)
  Atomics.store(call, CALL.helper, currentThread())
  for (;;) {
    const heard = Atomics.load(call, CALL.jobs)
    for (const { board, target } of queues) helpOne(board, target, stores)
    // If a job was added meanwhile, the word has changed, and this does not wait.
    Atomics.wait(call, CALL.jobs, heard)
  }
}

function helpOne(board: Int32Array, target: Buffer, stores: readonly Store[]): void {
  for (let index = MAX_JOBS - 1; index >= 0; index--) {
    const job = index * JOB_WORDS
    if (Atomics.compareExchange(board, job, READY, TAKEN) !== READY) continue // rule (2)
    Atomics.store(board, job, help(board, job, target, stores) ? DONE : FAILED)
    Atomics.notify(board, job)
  }
}

function help(board: Int32Array, job: number, target: Buffer, stores: readonly Store[]): boolean {
  const word = (index: number) => board[job + index] as number
  const store = stores[word(WORD.store)]
  const format = findFormat(FORMAT_NAMES[word(WORD.format)] ?? '')
  const numbers = Array.from({ length: NUMBERS }, (_, i) => {
    const low = WORD.numbers + 2 * i
    return (word(low) >>> 0) + word(low + 1) * 2 ** 32
  })
  const to = word(WORD.target)
  try {
    if (!store || !format?.unpack) return false
    format.unpack(store, numbers, target.subarray(to, to + word(WORD.cluster)))
    return true
  } catch {
    // The worker tries again and reports the error.
    return false
  }
}
