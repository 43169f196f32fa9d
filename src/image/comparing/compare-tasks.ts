/** Comparing parts of two disks in several threads, which take the parts from one list. */
import type { View } from '../../formats/driver.js'
import { firstDifference, firstNonZero } from './bytes.js'
import { readView } from '../reading/engine.js'
import { isDamage } from '../reading/walk-layers.js'

/** The disks that have bytes in a part; the other one reads as zeros there. */
export type Reads = 'both' | 'a' | 'b'
const READS = ['both', 'a', 'b'] as const

const TASK_WORDS = 3
/** The most parts in a list. */
const MAX_TASKS = 64 * 1024
/** The size of a part, in bytes. */
const TASK_BYTES = 8 * 2 ** 20
/** How much is read at once: two such pieces stay in a processor's cache. */
const PIECE_BYTES = 256 * 1024
/** Words of `control`: the next part, and the number of parts. */
const CONTROL = { next: 0, count: 1 } as const
const NOWHERE = 2n ** 62n

/** Memory that the threads share. */
export interface TaskMemory {
  readonly tasks: SharedArrayBuffer
  readonly control: SharedArrayBuffer
  /** The first place so far where the disks differ, or cannot be read. */
  readonly first: SharedArrayBuffer
}

export const createTaskMemory = (): TaskMemory => ({
  tasks: new SharedArrayBuffer(MAX_TASKS * TASK_WORDS * 8),
  control: new SharedArrayBuffer(4 * Object.keys(CONTROL).length),
  first: new SharedArrayBuffer(8),
})

/** A part that cannot be read: plain data, for messages. */
export interface ReadFailure {
  readonly offset: number
  readonly side: 'a' | 'b'
  readonly reason: string
}

/** The list of parts. Each thread has its own object of the same memory. */
export class TaskList {
  private readonly tasks: Float64Array
  private readonly control: Int32Array
  private readonly places: BigInt64Array

  constructor(memory: TaskMemory) {
    this.tasks = new Float64Array(memory.tasks)
    this.control = new Int32Array(memory.control)
    this.places = new BigInt64Array(memory.first)
  }

  /** Empties the list. */
  begin(): void {
    this.control.fill(0)
    Atomics.store(this.places, 0, NOWHERE)
  }

  /** Adds what fits of a range. Returns how many bytes of it that is. */
  add(offset: number, length: number, reads: Reads): number {
    let done = 0
    let count = this.control[CONTROL.count] as number
    for (; done < length && count < MAX_TASKS; count++) {
      // Parts end at multiples of their size, so that no cluster is decompressed for two of them.
      const at = offset + done
      const bytes = Math.min(length - done, TASK_BYTES - (at % TASK_BYTES))
      this.tasks.set([at, bytes, READS.indexOf(reads)], count * TASK_WORDS)
      done += bytes
    }
    this.control[CONTROL.count] = count
    return done
  }

  /** Where the disks first differ, as far as the threads have come; undefined if they do not. */
  get first(): number | undefined {
    const place = Atomics.load(this.places, 0)
    return place === NOWHERE ? undefined : Number(place)
  }

  /** How far the threads have come, in bytes of the disk. */
  get reached(): number {
    const next = Math.min(
      this.control[CONTROL.next] as number,
      this.control[CONTROL.count] as number,
    )
    return next === 0 ? 0 : (this.tasks[(next - 1) * TASK_WORDS] as number)
  }

  /** Takes the next part; undefined if there is none before the first difference. */
  take(): { readonly offset: number; readonly length: number; readonly reads: Reads } | undefined {
    const index = Atomics.add(this.control, CONTROL.next, 1)
    if (index >= (this.control[CONTROL.count] as number)) return undefined
    const [offset, length, reads] = this.tasks.subarray(index * TASK_WORDS) as unknown as number[]
    if ((offset as number) >= (this.first ?? Number.POSITIVE_INFINITY)) return undefined
    return {
      offset: offset as number,
      length: length as number,
      reads: READS[reads as number] as Reads,
    }
  }

  /** Notes a place where the disks differ. */
  differ(offset: number): void {
    const place = BigInt(offset)
    for (let first = Atomics.load(this.places, 0); place < first; ) {
      const found = Atomics.compareExchange(this.places, 0, first, place)
      if (found === first) return
      first = found
    }
  }
}

/** Compares parts of two disks, in one thread. */
export class Comparer {
  private readonly one = Buffer.allocUnsafeSlow(PIECE_BYTES)
  private readonly other = Buffer.allocUnsafeSlow(PIECE_BYTES)
  /** The first part that could not be read. */
  failure: ReadFailure | undefined

  constructor(
    private readonly a: View,
    private readonly b: View,
    private readonly list: TaskList,
  ) {}

  /** Compares one part of the list. Returns false if there is none. Throws only bugs. */
  step(): boolean {
    const task = this.list.take()
    if (!task) return false
    const { offset, length, reads } = task
    for (let at = offset; at < offset + length; at += PIECE_BYTES) {
      const bytes = Math.min(PIECE_BYTES, offset + length - at)
      const isRead =
        (reads === 'b' || this.read('a', this.one, bytes, at)) &&
        (reads === 'a' || this.read('b', this.other, bytes, at))
      if (!isRead) break
      const found = this.difference(reads, bytes)
      if (found < 0) continue
      this.list.differ(at + found)
      break
    }
    return true
  }

  private difference(reads: Reads, bytes: number): number {
    if (reads === 'both') return firstDifference(this.one, this.other, bytes)
    return firstNonZero(reads === 'a' ? this.one : this.other, bytes)
  }

  private read(side: 'a' | 'b', target: Buffer, bytes: number, offset: number): boolean {
    try {
      readView(side === 'a' ? this.a : this.b, target, 0, bytes, offset)
      return true
    } catch (error) {
      if (!isDamage(error)) throw error
      if (!this.failure || offset < this.failure.offset) {
        this.failure = { offset, side, reason: error.message }
      }
      this.list.differ(offset)
      return false
    }
  }
}
