/** An object that the network thread has open: who waits for which blocks, and what is being fetched. */
import { HAS_CHANGED, MARKS, ObjectState } from '../cached-store.js'
import type { Asked, Mail } from '../mail.js'
import type { Counters } from './counters.js'
import { FetchError, type RangeSource } from './range-source.js'
import { ReadAhead } from './read-ahead.js'
import { withRetries } from './retry.js'
import type { Tiers } from './tiers.js'

/** How many requests are in flight for one object. */
const MOST_REQUESTS = 8
/** The most bytes of one request. */
const REQUEST_BYTES = 2 * 2 ** 20
const PREFETCH_REQUESTS = 2

/** Blocks that one request fetches. */
interface Run {
  next: number
  end: number
  /** Whether a reader waits for them: then the request is tried again. */
  readonly isWanted: boolean
}

/** A reader, and the first of its blocks that may be missing. */
interface Waiting {
  readonly asked: Asked
  next: number
}

export interface ObjectParts {
  readonly id: number
  readonly source: RangeSource | undefined
  readonly tiers: Tiers
  readonly mail: Mail
  readonly counters: Counters
  readonly timeoutMs: number
  readonly blockBytes: number
  readonly sizeBytes: number
  readonly state: SharedArrayBuffer
  readonly log: (message: string) => void
}

export class RemoteObject {
  private readonly waiting = new Map<number, Waiting>()
  /** The blocks that are in flight, or queued. */
  private readonly coming = new Map<number, Run>()
  private readonly wanted: Run[] = []
  private readonly ahead: Run[] = []
  private running = 0
  private readonly state: ObjectState
  private readonly readAhead: ReadAhead
  private readonly ending = new AbortController()
  private readonly checked: Buffer

  constructor(private readonly parts: ObjectParts) {
    const { blockBytes, sizeBytes, state } = parts
    this.state = new ObjectState(state)
    this.readAhead = new ReadAhead(blockBytes, Math.ceil(sizeBytes / blockBytes), MARKS)
    this.checked = Buffer.allocUnsafeSlow(blockBytes)
  }

  get id(): number {
    return this.parts.id
  }

  /** Takes a request: answers it when its blocks are there. */
  ask(asked: Asked): void {
    if (this.state.isChanged) {
      this.parts.mail.answer(asked, HAS_CHANGED)
      return
    }
    const { first, count } = asked
    this.waiting.set(asked.slot, { asked, next: first })
    this.request(first, count, true)
    this.answer()
    this.requestAhead(first, count)
    this.start()
  }

  /** Reads on where readers have passed marks. */
  lookAtMarks(): void {
    for (let index = 0; index < MARKS; index++) {
      const block = this.state.reached(index)
      if (block >= 0) this.requestAhead(block, 1)
    }
    this.start()
  }

  /** Fetches all that is missing. Resolves when that is done, or when it fails. */
  async prefetch(): Promise<void> {
    const { blockBytes, sizeBytes, counters, tiers } = this.parts
    if (!tiers.keepsAll) return
    const blocks = Math.ceil(sizeBytes / blockBytes)
    counters.add('prefetchBytes', sizeBytes)
    let next = 0
    const work = async () => {
      while (next < blocks && !this.ending.signal.aborted) {
        const first = next
        while (next < blocks && next - first < REQUEST_BYTES / blockBytes) {
          if (tiers.has(next) || this.coming.has(next)) break
          next++
        }
        const end = Math.max(next, first + 1)
        const run: Run = { next: first, end: next, isWanted: false }
        next = end
        for (let block = first; block < run.end; block++) this.coming.set(block, run)
        if (run.end > first && !(await this.fetch(run))) return
        const endBytes = Math.min(end * blockBytes, sizeBytes)
        counters.add('prefetchedBytes', endBytes - first * blockBytes)
        if (this.state.isChanged) return
      }
    }
    await Promise.all(Array.from({ length: PREFETCH_REQUESTS }, work))
  }

  close(): void {
    this.ending.abort()
    for (const { asked } of this.waiting.values()) this.parts.mail.answer(asked, 'it is closed')
    this.parts.source?.close()
    this.parts.tiers.close()
  }

  /** Keeps blocks that opening has fetched. */
  keep(head: Buffer): void {
    const { blockBytes, sizeBytes, tiers } = this.parts
    for (let block = 0; block * blockBytes < head.length; block++) {
      const length = Math.min(blockBytes, sizeBytes - block * blockBytes)
      const bytes = head.subarray(block * blockBytes, block * blockBytes + length)
      if (bytes.length === length && !tiers.has(block)) tiers.put(block, bytes)
    }
  }

  private requestAhead(first: number, count: number): void {
    const more = this.readAhead.asked(first, count)
    if (!more) return
    this.request(more.first, more.count, false)
    this.state.mark(more.stream, more.mark)
  }

  /** Queues the blocks that are neither here nor coming. */
  private request(first: number, count: number, isWanted: boolean): void {
    const { blockBytes } = this.parts
    const most = Math.max(1, REQUEST_BYTES / blockBytes)
    let run: Run | undefined
    const end = first + count
    for (let block = first; block <= end; block++) {
      const isMissing = block < end && !this.coming.has(block) && !this.isHere(block, isWanted)
      if (isMissing && run && block - run.next < most) {
        run.end = block + 1
      } else if (isMissing) {
        run = { next: block, end: block + 1, isWanted }
        ;(isWanted ? this.wanted : this.ahead).push(run)
      } else run = undefined
      if (run) this.coming.set(block, run)
    }
    if (isWanted) this.promote(first, end)
  }

  /** A reader asks only for blocks that it could not read: then an entry is not enough. */
  private isHere(block: number, isWanted: boolean): boolean {
    const { tiers } = this.parts
    return isWanted ? tiers.isSound(block, this.checked) : tiers.has(block)
  }

  /** Blocks that somebody waits for now go before those that are read ahead. */
  private promote(first: number, end: number): void {
    for (let i = 0; i < this.ahead.length; i++) {
      const run = this.ahead[i] as Run
      if (run.next >= end || run.end <= first) continue
      this.ahead.splice(i--, 1)
      this.wanted.push(run)
    }
  }

  private start(): void {
    while (this.running < MOST_REQUESTS) {
      const run = this.wanted.shift() ?? this.ahead.shift()
      if (!run) return
      this.running++
      void this.fetch(run).finally(() => {
        this.running--
        this.start()
      })
    }
  }

  /** Fetches the blocks of a run, and tells who waits for them. Returns false if that failed. */
  private async fetch(run: Run): Promise<boolean> {
    const { source, timeoutMs, counters } = this.parts
    const first = run.next
    const letGo = () => {
      for (let block = first; block < run.end; block++) {
        if (this.coming.get(block) === run) this.coming.delete(block)
      }
    }
    try {
      if (!source) throw new FetchError('refused', 'it is not in the cache, and --offline is given')
      await withRetries((signal, onProgress) => this.attempt(source, run, signal, onProgress), {
        timeoutMs,
        isOnce: !run.isWanted,
        signal: this.ending.signal,
        onRetry: () => counters.add('retries'),
      })
      letGo()
      this.answer()
      return true
    } catch (error) {
      letGo()
      if (this.ending.signal.aborted) return false
      counters.add('failures')
      this.fail(run, error)
      this.answer()
      return false
    }
  }

  private async attempt(
    source: RangeSource,
    run: Run,
    signal: AbortSignal,
    onProgress: () => void,
  ): Promise<void> {
    const { blockBytes, sizeBytes, counters, tiers } = this.parts
    const at = run.next * blockBytes
    const length = Math.min(run.end * blockBytes, sizeBytes) - at
    const buffer = Buffer.allocUnsafe(blockBytes)
    let filled = 0
    counters.add('requests')
    const onBytes = (bytes: Buffer) => {
      counters.add('fetchedBytes', bytes.length)
      for (let from = 0; from < bytes.length; ) {
        const whole = Math.min(blockBytes, sizeBytes - run.next * blockBytes)
        const part = Math.min(bytes.length - from, whole - filled)
        bytes.copy(buffer, filled, from, from + part)
        from += part
        filled += part
        if (filled < whole) continue
        filled = 0
        tiers.put(run.next, buffer.subarray(0, whole))
        this.coming.delete(run.next)
        run.next++
        onProgress()
        this.answer()
      }
    }
    await source.fetch(at, length, onBytes, signal)
    if (run.next < run.end) throw new FetchError('later', 'the server has sent too little')
  }

  /** Answers those whose blocks are all here. */
  private answer(): void {
    for (const waiting of this.waiting.values()) {
      const { asked } = waiting
      const end = asked.first + asked.count
      while (waiting.next < end && !this.coming.has(waiting.next)) waiting.next++
      if (waiting.next < end) continue
      this.parts.mail.answer(asked)
      this.waiting.delete(asked.slot)
    }
  }

  private fail(run: Run, error: unknown): void {
    const { mail } = this.parts
    const { problem = undefined } = error instanceof FetchError ? error : {}
    const isChanged = problem === 'changed'
    if (isChanged && !this.state.isChanged) {
      this.state.change()
      this.parts.log(HAS_CHANGED)
    }
    const why = isChanged ? HAS_CHANGED : (error as Error).message
    for (const { asked, next } of this.waiting.values()) {
      const isHit = next < run.end && asked.first + asked.count > run.next
      if (!isHit && !isChanged) continue
      // Reading ahead is tried once. Who waits for it now is owed more.
      if (problem === 'later' && !run.isWanted) {
        this.request(run.next, run.end - run.next, true)
        return
      }
      mail.answer(asked, why)
      this.waiting.delete(asked.slot)
    }
  }
}
