/**
 * Makes the kernel drop cached pages of the disk's file (FUSE_NOTIFY_INVAL_INODE). The kernel then waits for the locks of
 * pages, and requests that are not answered yet may hold them. So a separate thread sends the notification
 * (page-drop-thread.ts), and a thread that needs the pages gone waits for a bounded time.
 */
import type { GapActions } from './gap-actions.js'
import { withLock } from './word-lock.js'

/** Words of the shared memory. */
const LOCK = 0
const ASKED = 1
const DONE = 2
const READY = 3
const WORDS = 4

/** How long to wait for the lock of a page. */
const WAIT_MS = 400

/**
 * Returns `GapActions.dropPages`, which uses `dropper`.
 *
 * @param startMs how long to wait for the start of its thread
 */
export const dropPages =
  (dropper: PageDropper, startMs: number): GapActions['dropPages'] =>
  (offset, length, isLocked) => {
    const ticket = dropper.ask(offset, length)
    if (!isLocked) dropper.wait(ticket, startMs)
  }

export class PageDropper {
  private readonly words: Int32Array
  /** The range to drop, from and to; empty if there is nothing to do. */
  private readonly range: Float64Array

  constructor(readonly shared = new SharedArrayBuffer(4 * WORDS + 16)) {
    this.words = new Int32Array(shared, 0, WORDS)
    this.range = new Float64Array(shared, 4 * WORDS, 2)
  }

  /** Asks to drop a range. Returns a ticket for `wait`. */
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

  /** Returns once the pages are gone, or after a bounded time. */
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

  /** Serves requests as long as the process lives. The thread calls this. */
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
