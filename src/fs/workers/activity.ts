/**
 * The workers' activity, for the main thread (crowding.ts). The gate counts who answers a request; the main thread looks at
 * that only while it watches. A worker that takes a request while nobody watches tells the main thread, once.
 */
import type { Gate } from './gate.js'

const WATCHED = 0
const SERVING = 1
const WORDS = 2

export const createActivityMemory = (): SharedArrayBuffer => new SharedArrayBuffer(4 * WORDS)

/** Returns how many workers serve. */
export const servingWorkers = (memory: SharedArrayBuffer): number =>
  Atomics.load(new Int32Array(memory), SERVING)

/** A worker's part. */
export class WorkerActivity {
  private readonly words: Int32Array

  constructor(memory: SharedArrayBuffer) {
    this.words = new Int32Array(memory)
  }

  /** Called after the gate has counted a request. Returns whether the main thread must be told of it. */
  mustTell(): boolean {
    return Atomics.load(this.words, WATCHED) === 0 && Atomics.exchange(this.words, WATCHED, 1) === 0
  }
}

/** The main thread's part. */
export class Activity {
  private readonly words: Int32Array
  /** The counts of the workers that have begun to serve, by their numbers, at the last look. */
  private readonly seen: number[] = []
  private readonly left = new Set<number>()

  constructor(
    memory: SharedArrayBuffer,
    private readonly gate: Pick<Gate, 'countOf'>,
  ) {
    this.words = new Int32Array(memory)
  }

  /** The next worker serves. Returns its number, from 0 on. */
  add(): number {
    this.seen.push(0)
    Atomics.add(this.words, SERVING, 1)
    return this.seen.length - 1
  }

  /** The worker with this number does not serve any more. */
  remove(worker: number): void {
    this.left.add(worker)
    Atomics.sub(this.words, SERVING, 1)
  }

  /** How many workers serve. */
  get serving(): number {
    return Atomics.load(this.words, SERVING)
  }

  /** False makes the workers tell of the next request. */
  set isWatched(isWatched: boolean) {
    Atomics.store(this.words, WATCHED, isWatched ? 1 : 0)
  }

  /** Whether no worker can take a request now. */
  get areAllBusy(): boolean {
    return this.seen.every(
      (_, worker) => this.left.has(worker) || this.gate.countOf(worker) % 2 !== 0,
    )
  }

  /** Returns whether a worker is answering a request, or has answered one since the last look. */
  look(): boolean {
    let isActive = false
    for (let worker = 0; worker < this.seen.length; worker++) {
      const count = this.gate.countOf(worker)
      isActive ||= !this.left.has(worker) && (count % 2 !== 0 || count !== this.seen[worker])
      this.seen[worker] = count
    }
    return isActive
  }
}
