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

/** The end of a file. */
export interface FileEnd {
  readonly sizeBytes: number
  readonly lastByte: number
}

export class PageDropper {
  private readonly words: Int32Array
  /** The range to drop, from and to; empty if there is nothing to do. Then the size to show, 0 for none, and the last byte. */
  private readonly range: Float64Array

  constructor(readonly shared = new SharedArrayBuffer(4 * WORDS + 32)) {
    this.words = new Int32Array(shared, 0, WORDS)
    this.range = new Float64Array(shared, 4 * WORDS, 4)
  }

  /** Whether all that was asked for is done. */
  get isDone(): boolean {
    return Atomics.load(this.words, DONE) === Atomics.load(this.words, ASKED)
  }

  /**
   * Asks to drop a range. Returns a ticket for `wait`.
   * @param end first make the kernel believe that the file has at least this size
   */
  ask(offset: number, length: number, end?: FileEnd): number {
    return withLock(this.words, LOCK, () => {
      if (end) {
        this.range[2] = end.sizeBytes
        this.range[3] = end.lastByte
      }
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
  serve(drop: (offset: number, length: number, end: FileEnd | undefined) => void): never {
    let done = 0
    Atomics.store(this.words, READY, 1)
    Atomics.notify(this.words, READY)
    for (;;) {
      Atomics.wait(this.words, ASKED, done)
      const { from, to, end, asked } = this.take()
      if (to > from) drop(from, to - from, end)
      done = asked
      Atomics.store(this.words, DONE, done)
      Atomics.notify(this.words, DONE)
    }
  }

  private take(): { from: number; to: number; end: FileEnd | undefined; asked: number } {
    return withLock(this.words, LOCK, () => {
      const [from = 0, to = 0, sizeBytes = 0, lastByte = 0] = this.range
      const end = sizeBytes > 0 ? { sizeBytes, lastByte } : undefined
      this.range.fill(0)
      return { from, to, end, asked: Atomics.load(this.words, ASKED) }
    })
  }
}
