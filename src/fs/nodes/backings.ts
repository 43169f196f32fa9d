/**
 * How each file of a mount is served, in memory that all threads share. The kernel allows an inode one way at a time, so a file
 * keeps the way that was decided at its first opening. It changes once at most, from passthrough to the server. Where a file must
 * be laid out first (image/layout/lay-out.ts), nobody opens it until that is decided.
 */
import { withLock } from '../writing/word-lock.js'

const LOCK = 0
const HEAD = 1
/** Files with larger numbers have no place. */
const FILES = 2 ** 16
const UNDECIDED = 0
/** The file is gone, and its number does not come back. */
const RETIRED = -(2 ** 31)
/** The file is to be laid out at its first opening, or this is being done. */
const WANTED = RETIRED + 1
const BEGUN = RETIRED + 2

/** The kernel reads the file that it knows as `backing`. */
export interface Passed {
  readonly backing: number
  readonly readsSectors: boolean
  /** Whether that file was laid out, so that nobody else has it. */
  readonly isLaidOut: boolean
}

/** Passthrough, or the server for a reason, which is below 0; or it is decided when the file has been laid out. */
export type Settled = Passed | { readonly reason: number }
export type Decision = Settled | 'layout'

export class Backings {
  private readonly words: Int32Array

  constructor(readonly shared = new SharedArrayBuffer(4 * (HEAD + FILES))) {
    this.words = new Int32Array(shared)
  }

  /** Whether the file `id` has a place. */
  has(id: number): boolean {
    return id < FILES
  }

  /** Returns what was decided for the file `id`. Only one thread calls `decide`, and only if nothing has been decided. */
  of(id: number, decide: () => Decision): Decision {
    const known = this.word(id)
    if (known !== UNDECIDED) return decisionOf(known)
    return withLock(this.words, LOCK, () => {
      const found = this.word(id)
      if (found !== UNDECIDED) return decisionOf(found)
      const decided = decide()
      Atomics.store(this.words, HEAD + id, wordOf(decided))
      return decided
    })
  }

  /** Notes that a layout of the file `id` begins. Returns false if none is wanted, or it has begun already. */
  begin(id: number): boolean {
    return Atomics.compareExchange(this.words, HEAD + id, WANTED, BEGUN) === WANTED
  }

  /** Ends a layout that has begun. Returns false if another has ended it. */
  settle(id: number, settled: Settled): boolean {
    return Atomics.compareExchange(this.words, HEAD + id, BEGUN, wordOf(settled)) === BEGUN
  }

  /** Whether those who open the file `id` have to wait for a layout. */
  isWaitedFor(id: number): boolean {
    return this.has(id) && (this.word(id) === WANTED || this.word(id) === BEGUN)
  }

  /** Has the server serve the file from now on. */
  giveUp(id: number, reason: number): void {
    Atomics.store(this.words, HEAD + id, reason)
  }

  /** Whether passthrough serves the file `id`, or is about to. */
  isPassed(id: number): boolean {
    return this.has(id) && (this.word(id) > 0 || this.isWaitedFor(id))
  }

  /** Forgets files that are gone: those for which `isThere` is false. Returns the kernel's numbers of what they were passed to. */
  retire(isThere: (id: number) => boolean): number[] {
    const retired: number[] = []
    for (let id = 0; id < FILES; id++) {
      const decision = this.word(id) > 0 && !isThere(id) ? decisionOf(this.word(id)) : undefined
      if (typeof decision !== 'object' || !('backing' in decision)) continue
      this.giveUp(id, RETIRED)
      retired.push(decision.backing)
    }
    return retired
  }

  private word(id: number): number {
    return Atomics.load(this.words, HEAD + id)
  }
}

const wordOf = (decision: Decision): number => {
  if (decision === 'layout') return WANTED
  if ('reason' in decision) return decision.reason
  return decision.backing * 4 + Number(decision.isLaidOut) * 2 + Number(decision.readsSectors)
}

const decisionOf = (word: number): Decision => {
  if (word === WANTED || word === BEGUN) return 'layout'
  if (word < 0) return { reason: word }
  return { backing: word >> 2, isLaidOut: (word & 2) !== 0, readsSectors: (word & 1) !== 0 }
}
