/**
 * How each file of a mount is served, in memory that all threads share. The kernel allows an inode one way at a time, so a file
 * keeps the way that was decided at its first opening. It changes once at most, from passthrough to the server.
 */
import { withLock } from '../writing/word-lock.js'

const LOCK = 0
const HEAD = 1
/** Files with larger numbers have no place. */
const FILES = 2 ** 16
const UNDECIDED = 0
/** The file is gone, and its number does not come back. */
const RETIRED = -(2 ** 31)

/** Passthrough of the file that the kernel knows as `backing`, or the server for a reason, which is below 0. */
export type Decision =
  | { readonly backing: number; readonly readsSectors: boolean }
  | { readonly reason: number }

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

  /** Has the server serve the file from now on. */
  giveUp(id: number, reason: number): void {
    Atomics.store(this.words, HEAD + id, reason)
  }

  /** Whether passthrough serves the file `id`. */
  isPassed(id: number): boolean {
    return this.has(id) && this.word(id) > 0
  }

  /** Forgets files that are gone: those for which `isThere` is false. Returns the kernel's numbers of what they were passed to. */
  retire(isThere: (id: number) => boolean): number[] {
    const retired: number[] = []
    for (let id = 0; id < FILES; id++) {
      const decision = this.word(id) > 0 && !isThere(id) ? decisionOf(this.word(id)) : undefined
      if (!decision || !('backing' in decision)) continue
      this.giveUp(id, RETIRED)
      retired.push(decision.backing)
    }
    return retired
  }

  private word(id: number): number {
    return Atomics.load(this.words, HEAD + id)
  }
}

const wordOf = (decision: Decision): number =>
  'reason' in decision ? decision.reason : decision.backing * 2 + Number(decision.readsSectors)

const decisionOf = (word: number): Decision =>
  word < 0 ? { reason: word } : { backing: Math.floor(word / 2), readsSectors: word % 2 === 1 }
