/** Compares two disks, with the rules of `qemu-img compare` (QEMU 7.2). */
import { once } from 'node:events'
import os from 'node:os'
import { setImmediate as turn } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import {
  Comparer,
  createTaskMemory,
  type ReadFailure,
  type Reads,
  TaskList,
} from './compare-tasks.js'
import type { CompareSetup } from './compare-worker.js'
import { type Pair, pairsOf } from './pair.js'
import type { Part, Source } from '../reading/source.js'
import { SECTOR_BYTES } from '../../sector.js'

export interface CompareOptions {
  /** Whether sizes have to be equal, and what is data, what zeros and what unallocated. */
  readonly isStrict?: boolean
  /** Told how far it has come, in bytes of the disks. */
  readonly progress?: (done: number) => void
  /** How many threads compare at most; by default as many as there are processors, up to 4. */
  readonly threads?: number
}

export type Compared =
  | { readonly kind: 'same'; readonly sizesDiffer: boolean }
  | { readonly kind: 'sizes' }
  | { readonly kind: 'allocation'; readonly offset: number }
  | { readonly kind: 'content'; readonly offset: number; readonly sizesDiffer: boolean }
  /** The tables of a disk are damaged. */
  | { readonly kind: 'lost tables'; readonly error: unknown }
  | { readonly kind: 'unreadable'; readonly failure: ReadFailure }

/** Threads cost more than they save for less work than this, in bytes of plain data. */
const THREADS_FROM_BYTES = 384 * 2 ** 20
/** Decompressing or decrypting takes about so many times as long as reading. */
const SLOW_FACTOR = 4
const MAX_THREADS = 4
/** How long this thread works before it lets signals and messages be handled. */
const TURN_MS = 100

/** Compares the disks. Both must be open until it returns. */
export async function compareDisks(
  a: Source,
  b: Source,
  options: CompareOptions = {},
): Promise<Compared> {
  const sizesDiffer = a.sectorBytes !== b.sectorBytes
  if (options.isStrict && sizesDiffer) return { kind: 'sizes' }
  const crew = new Crew(a, b, options)
  try {
    const found = await crew.compare()
    a.requireThere()
    b.requireThere()
    if (!found) return { kind: 'same', sizesDiffer }
    if (found.kind !== 'content') return found
    const { offset } = found
    const isBeyond = offset >= Math.min(a.sectorBytes, b.sectorBytes)
    // QEMU gives the sector.
    return { ...found, offset: offset - (offset % SECTOR_BYTES), sizesDiffer: isBeyond }
  } finally {
    await crew.close()
  }
}

/** Reports whether QEMU takes a part for allocated: also zeros because the layer below is too short. */
const isAllocated = ({ layers }: Source, { kind, depth }: Part): boolean =>
  kind !== 'unallocated' || depth < layers.length - 1

type Found = Extract<Compared, { kind: 'allocation' | 'lost tables' | 'unreadable' }> | Content
interface Content {
  readonly kind: 'content'
  readonly offset: number
}

/** The threads that compare; this one is the first of them. */
class Crew {
  private readonly memory = createTaskMemory()
  private readonly list = new TaskList(this.memory)
  private readonly comparer: Comparer
  private readonly helpers: Worker[] = []
  private readonly threads: number

  constructor(
    private readonly a: Source,
    private readonly b: Source,
    private readonly options: CompareOptions,
  ) {
    this.comparer = new Comparer(a.view, b.view, this.list)
    this.threads = options.threads ?? Math.min(os.availableParallelism(), MAX_THREADS)
  }

  /** Returns what is found first on the disk; undefined if the disks are equal. */
  async compare(): Promise<Found | undefined> {
    let end: Found | undefined
    let work = 0
    this.list.begin()
    try {
      for (const { offset, length, reads, isSlow } of this.ranges()) {
        if (reads === 'end') {
          end = { kind: 'allocation', offset }
          break
        }
        for (let done = 0; done < length; ) {
          const added = this.list.add(offset + done, length - done, reads)
          done += added
          work += isSlow ? added * SLOW_FACTOR : added
          if (done === length) break
          const found = await this.work(work)
          if (found) return found
          this.list.begin()
          work = 0
        }
      }
    } catch (error) {
      // The bytes before may differ.
      end = { kind: 'lost tables', error }
    }
    return (await this.work(work)) ?? end
  }

  async close(): Promise<void> {
    await Promise.all(this.helpers.map(helper => helper.terminate()))
  }

  /** Yields the ranges that must be read; `end` where a strict comparison ends. */
  private *ranges(): Generator<{
    offset: number
    length: number
    reads: Reads | 'end'
    isSlow: boolean
  }> {
    const { a, b, options } = this
    const common = Math.min(a.sizeBytes, b.sizeBytes)
    for (const pair of pairsOf(a, b, common)) {
      const { offset, length } = pair
      const isSlow = isSlowPart(pair.a) || isSlowPart(pair.b)
      if (options.isStrict && !this.isAlike(pair)) yield { offset, length, reads: 'end', isSlow }
      else if (!pair.isSame) yield { offset, length, reads: readsOf(pair), isSlow }
    }
    const [longer, reads] = a.sizeBytes > b.sizeBytes ? [a, 'a' as const] : [b, 'b' as const]
    for (const part of longer.parts(common, longer.sizeBytes - common)) {
      const { offset, length, kind } = part
      if (kind === 'data') yield { offset, length, reads, isSlow: isSlowPart(part) }
    }
  }

  private isAlike({ a, b }: Pair): boolean {
    const isAllocatedAlike = isAllocated(this.a, a) === isAllocated(this.b, b)
    return isAllocatedAlike && (a.kind === 'data') === (b.kind === 'data')
  }

  /** Works through the list. Returns what is found first. */
  private async work(bytes: number): Promise<Found | undefined> {
    const { comparer, list } = this
    if (bytes >= THREADS_FROM_BYTES) this.start()
    const helped = this.helpers.map(helper => {
      helper.postMessage(null)
      return answerOf(helper)
    })
    const all = Promise.all(helped)
    // An error of a helper is thrown below, when this thread has done its part.
    all.catch(() => {})
    let turnedAt = performance.now()
    while (comparer.step()) {
      if (performance.now() - turnedAt < TURN_MS) continue
      this.options.progress?.(list.reached)
      await turn()
      turnedAt = performance.now()
    }
    const failures = [comparer.failure, ...(await all)]
    const { first } = list
    if (first === undefined) return undefined
    const failure = failures.find(each => each?.offset === first)
    return failure ? { kind: 'unreadable', failure } : { kind: 'content', offset: first }
  }

  private start(): void {
    while (this.helpers.length < this.threads - 1) {
      const setup: CompareSetup = { a: this.a.spec, b: this.b.spec, memory: this.memory }
      this.helpers.push(
        new Worker(new URL('./compare-worker.cjs', import.meta.url), { workerData: setup }),
      )
    }
  }
}

async function answerOf(helper: Worker): Promise<ReadFailure | undefined> {
  const [failure] = (await once(helper, 'message')) as [ReadFailure | null]
  return failure ?? undefined
}

const isSlowPart = ({ kind, place }: Part): boolean => kind === 'data' && !place

const readsOf = ({ a, b }: Pair): Reads => {
  if (a.kind === 'data') return b.kind === 'data' ? 'both' : 'a'
  return 'b'
}
