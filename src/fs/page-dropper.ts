/**
 * Has the kernel drop cached pages of the disk's file (FUSE_NOTIFY_INVAL_INODE). The kernel then waits for
 * locks of pages, which may be held for requests that nobody has answered yet. So a thread of its own
 * tells it (page-drop-thread.ts), and who needs the pages gone waits for a bounded time.
 */
import type { GapActions } from './truncations.js'
import { withLock } from './word-lock.js'

/** Words. */
const LOCK = 0
const ASKED = 1
const DONE = 2
const READY = 3
const WORDS = 4

/** How long a page's lock is waited for. */
const WAIT_MS = 400

/**
 * `GapActions.dropPages` by `dropper`.
 *
 * @param startMs how long may be waited until its thread serves
 */
export const dropPages =
  (dropper: PageDropper, startMs: number): GapActions['dropPages'] =>
  (offset, length, isLocked) => {
    const ticket = dropper.ask(offset, length)
    if (!isLocked) dropper.wait(ticket, startMs)
  }

export class PageDropper {
  private readonly words: Int32Array
  /** The range to drop, from and to; empty where nothing is to be done. */
  private readonly range: Float64Array

  constructor(readonly shared = new SharedArrayBuffer(4 * WORDS + 16)) {
    this.words = new Int32Array(shared, 0, WORDS)
    this.range = new Float64Array(shared, 4 * WORDS, 2)
  }

  /** Asks for a range to be dropped; returns a ticket for `wait`. */
  ask(offset: number, length: number): number {
    return withLock(this.words, LOCK, () => {
      const [from = 0, to = 0] = this.range
      const isEmpty = from === to
      this.range[0] = isEmpty ? offset : Math.min(from, offset)
      this.range[1] = Math.max(to, offset + length)
      const ticket = (Atomics.add(this.words, ASKED, 1) + 1) | 0
      Atomics.notify(this.words, ASKED)
      return ticket
    })
  }

  /** Returns once the pages are gone, or after a while. */
  wait(ticket: number, startMs: number): void {
    if (Atomics.load(this.words, READY) === 0) Atomics.wait(this.words, READY, 0, startMs)
    const deadline = performance.now() + WAIT_MS
    for (;;) {
      const done = Atomics.load(this.words, DONE)
      const left = deadline - performance.now()
      if (((done - ticket) | 0) >= 0 || left <= 0) return
      Atomics.wait(this.words, DONE, done, left)
    }
  }

  /** Does what is asked for, for as long as the process lives. For the thread. */
  serve(drop: (offset: number, length: number) => void): never {
    let done = 0
    Atomics.store(this.words, READY, 1)
    Atomics.notify(this.words, READY)
    for (;;) {
      Atomics.wait(this.words, ASKED, done)
      const { from, to, asked } = this.take()
      if (to > from) drop(from, to - from)
      done = asked
      Atomics.store(this.words, DONE, done)
      Atomics.notify(this.words, DONE)
    }
  }

  private take(): { from: number; to: number; asked: number } {
    return withLock(this.words, LOCK, () => {
      const [from = 0, to = 0] = this.range
      this.range.fill(0)
      return { from, to, asked: Atomics.load(this.words, ASKED) }
    })
  }
}
