/**
 * How threads that serve ask the main thread to look whether others have taken or deleted snapshots, before they answer a request
 * that lists files or looks one up. At most once a second, and for a bounded time.
 */
import { IN_HEADER, ROOT_ID } from '../protocol/protocol.js'

const LAST = 0
const DONE = 1
const WORDS = 2

const LOOK_MS = 1000
/** How long to wait for the main thread: it may wait for storage. */
const WAIT_MS = 2000

const LOOKUP = 1
const OPENDIR = 27

export class LookRequests {
  private readonly words: Int32Array

  constructor(readonly shared = new SharedArrayBuffer(4 * WORDS)) {
    this.words = new Int32Array(shared)
  }

  /** Reports whether to look before the request `message` is served. Says so to one thread only. */
  isDueFor(message: Buffer): boolean {
    const opcode = message.readUInt32LE(IN_HEADER.at.opcode)
    if (opcode !== LOOKUP && opcode !== OPENDIR) return false
    return message.readUInt32LE(IN_HEADER.at.nodeid) === ROOT_ID && this.isDue()
  }

  /** Reports the same for any request that lists or looks up. */
  isDue(): boolean {
    const now = Date.now() | 0
    const last = Atomics.load(this.words, LAST)
    // A clock that goes back must not end the looking.
    if (last !== 0 && Math.abs((now - last) | 0) < LOOK_MS) return false
    return Atomics.compareExchange(this.words, LAST, last, now) === last
  }

  /** Asks the main thread by `ask`, and returns when the new files can be served. */
  await(ask: () => void): void {
    const done = Atomics.load(this.words, DONE)
    ask()
    Atomics.wait(this.words, DONE, done, WAIT_MS)
  }

  /** Called by the main thread when a look is done. */
  answered(): void {
    Atomics.add(this.words, DONE, 1)
    Atomics.notify(this.words, DONE)
  }
}
