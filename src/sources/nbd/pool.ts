/**
 * The connections to one export, which all threads share: descriptors are the process's, and locks in shared memory give each
 * connection to one thread at a time. Several connections are used only where the server says that a flush on one of them
 * covers writes on all.
 *
 * A connection that is lost is made anew, and the request is sent again: each one may be done twice. But a server that was
 * started anew may have lost what was written and not flushed. So a loss while there are such writes ends the use of the export
 * for good, also for reading: the lost bytes would read as old ones.
 */
import { threadId } from 'node:worker_threads'
import { ImageError, SystemError } from '../../errors.js'
import { closeFile } from '../../io/libc.js'
import { Connection, type ExportInfo, ExportRefused, FLAG } from './protocol.js'
import { ConnectionLost, connectTo, type Endpoint, hangUp } from './socket.js'
import { constants } from 'node:os'

/** Words of the shared memory. */
const WORD = {
  cookie: 0,
  /** Counts losses of connections. */
  generation: 1,
  /** Writes that the server has done since the last flush began, or more. */
  unflushed: 2,
  /** Whether the export is not used any more, and whether somebody has been told. */
  ended: 3,
  told: 4,
  /** The lock of writes of parts of blocks. */
  partial: 5,
  /** Nobody wakes who waits here. */
  pause: 6,
  firstSlot: 8,
} as const
/** Words of a connection: its lock, its descriptor or -1, and the generation that it belongs to. */
const SLOT_WORDS = 3
const MAX_CONNECTIONS = 4
const MAX_PAUSE_MS = 2000
/** How long a connection besides the first one may take: without them it works, too. */
const EXTRA_MS = 1000

/** Values of the word `ended`. */
const ENDED = { lost: 1, silent: 2 } as const

export interface NbdSpec {
  readonly kind: 'nbd'
  readonly endpoint: Endpoint
  readonly exportName: string
  readonly info: ExportInfo
  readonly isWritten: boolean
  readonly slots: number
  /** How long a request may be tried, in milliseconds. */
  readonly timeoutMs: number
  readonly memory: SharedArrayBuffer
}

type Kind = 'read' | 'write' | 'flush'

/** Connects to an export. Throws ConnectionLost, ExportRefused. */
export function openPool(
  endpoint: Endpoint,
  exportName: string,
  isWritten: boolean,
  timeoutMs: number,
): NbdSpec {
  const memory = new SharedArrayBuffer(4 * (WORD.firstSlot + SLOT_WORDS * MAX_CONNECTIONS))
  const words = new Int32Array(memory)
  const connect = (deadline: number) => newConnection(endpoint, exportName, words, deadline)
  const first = connect(Date.now() + timeoutMs)
  const fds = [first.connection.fd]
  const most = (first.info.flags & FLAG.multi) !== 0 ? MAX_CONNECTIONS : 1
  while (fds.length < most) {
    try {
      fds.push(connect(Date.now() + EXTRA_MS).connection.fd)
    } catch {
      break
    }
  }
  fds.forEach((fd, slot) => {
    words[WORD.firstSlot + SLOT_WORDS * slot + 1] = fd
  })
  const { info } = first
  const base = { kind: 'nbd', endpoint, exportName, info, isWritten, timeoutMs, memory } as const
  return { ...base, slots: fds.length }
}

function newConnection(endpoint: Endpoint, name: string, words: Int32Array, deadline: number) {
  const fd = connectTo(endpoint, deadline)
  try {
    const connection = new Connection(fd, words.subarray(WORD.cookie, WORD.cookie + 1))
    return { connection, info: connection.negotiate(name, deadline) }
  } catch (error) {
    closeFile(fd)
    throw error
  }
}

export class Pool {
  private readonly words: Int32Array

  /** @param path the address, for messages */
  constructor(
    private readonly spec: NbdSpec,
    private readonly path: string,
  ) {
    this.words = new Int32Array(spec.memory)
  }

  /** Runs `act` on a connection, again on another one after a loss. Throws ImageError, SystemError. */
  run<T>(kind: Kind, act: (connection: Connection, deadline: number) => T): T {
    const deadline = Date.now() + this.spec.timeoutMs
    for (let pauseMs = 20; ; pauseMs = Math.min(2 * pauseMs, MAX_PAUSE_MS)) {
      this.requireUsable()
      const slot = this.take(deadline)
      const generation = this.load(WORD.generation)
      try {
        const covered = this.load(WORD.unflushed)
        const connection = this.connected(slot, generation, deadline)
        const result = act(connection, deadline)
        // Counted before the generation is looked at: a loss changes that first, and then looks at the count.
        if (kind === 'write') Atomics.add(this.words, WORD.unflushed, 1)
        if (kind === 'read' || this.load(WORD.generation) === generation) {
          if (kind === 'flush') Atomics.sub(this.words, WORD.unflushed, covered)
          return result
        }
      } catch (error) {
        if (error instanceof SystemError)
          throw new SystemError(error.syscall, error.errno, this.path)
        if (!(error instanceof ConnectionLost) && !(error instanceof ExportRefused)) throw error
        this.lose(slot, generation)
      } finally {
        this.release(slot)
      }
      this.requireUsable()
      if (Date.now() + pauseMs > deadline) this.giveUp()
      Atomics.wait(this.words, WORD.pause, 0, pauseMs)
    }
  }

  /** Runs `act` while no other thread writes a part of a block. */
  alone<T>(act: () => T): T {
    this.lock(WORD.partial)
    try {
      return act()
    } finally {
      this.unlock(WORD.partial)
    }
  }

  /** Makes requests that wait fail, in all threads, and those that come. */
  abandon(): void {
    Atomics.store(this.words, WORD.told, 1)
    this.end(ENDED.silent)
    for (let slot = 0; slot < this.spec.slots; slot++) {
      const fd = this.load(this.wordOf(slot) + 1)
      if (fd >= 0) hangUp(fd)
    }
  }

  /** Ends all connections. */
  close(): void {
    for (let slot = 0; slot < this.spec.slots; slot++) {
      const at = this.wordOf(slot) + 1
      const fd = Atomics.exchange(this.words, at, -1)
      if (fd < 0) continue
      try {
        new Connection(fd, this.words).disconnect()
      } catch {
        // It has ended already.
      }
      closeFile(fd)
    }
  }

  private connected(slot: number, generation: number, deadline: number): Connection {
    const { words, spec } = this
    const at = this.wordOf(slot)
    const fd = this.load(at + 1)
    const cookies = words.subarray(WORD.cookie, WORD.cookie + 1)
    if (fd >= 0 && this.load(at + 2) === generation) return new Connection(fd, cookies)
    this.drop(slot)
    const { connection, info } = newConnection(spec.endpoint, spec.exportName, words, deadline)
    const isSame =
      info.sizeBytes === spec.info.sizeBytes &&
      info.flags === spec.info.flags &&
      info.blockBytes === spec.info.blockBytes &&
      info.holes === spec.info.holes &&
      info.mostBytes >= spec.info.mostBytes
    if (!isSame) {
      closeFile(connection.fd)
      this.end(ENDED.lost)
      this.requireUsable()
    }
    Atomics.store(words, at + 2, generation)
    Atomics.store(words, at + 1, connection.fd)
    return connection
  }

  private lose(slot: number, generation: number): void {
    this.drop(slot)
    const { words, spec } = this
    Atomics.compareExchange(words, WORD.generation, generation, generation + 1)
    if (spec.isWritten && this.load(WORD.unflushed) > 0) this.end(ENDED.lost)
  }

  private drop(slot: number): void {
    const fd = Atomics.exchange(this.words, this.wordOf(slot) + 1, -1)
    if (fd >= 0) closeFile(fd)
  }

  private end(why: number): void {
    Atomics.compareExchange(this.words, WORD.ended, 0, why)
  }

  private giveUp(): never {
    const { isWritten } = this.spec
    if (isWritten) this.end(ENDED.silent)
    this.requireUsable()
    throw new SystemError('read', constants.errno.EIO, this.path)
  }

  private requireUsable(): void {
    const why = this.load(WORD.ended)
    if (why === 0) return
    const isRepeated = Atomics.exchange(this.words, WORD.told, 1) === 1
    const what =
      why === ENDED.silent
        ? `its server has not answered for ${this.spec.timeoutMs / 1000} seconds`
        : 'the connection to its server was lost, and with it perhaps what was written and not flushed, or the export has changed'
    throw new ImageError('CORRUPT', what, {
      path: this.path,
      endsWriting: true,
      isRepeated,
      hint: 'unmount it, and mount it again',
    })
  }

  /** Takes a connection that no other thread uses; waits for one while there is none. */
  private take(deadline: number): number {
    const { slots } = this.spec
    for (;;) {
      for (let i = 0; i < slots; i++) {
        const slot = (threadId + i) % slots
        const at = this.wordOf(slot)
        if (Atomics.compareExchange(this.words, at, 0, 1) === 0) return slot
      }
      const own = this.wordOf(threadId % slots)
      Atomics.wait(this.words, own, 1, 1000)
      // The thread that has it gives up, too, in time.
      if (Date.now() > deadline + 2 * this.spec.timeoutMs) this.giveUp()
    }
  }

  private release(slot: number): void {
    this.unlock(this.wordOf(slot))
  }

  private lock(at: number): void {
    while (Atomics.compareExchange(this.words, at, 0, 1) !== 0) Atomics.wait(this.words, at, 1)
  }

  private unlock(at: number): void {
    Atomics.store(this.words, at, 0)
    Atomics.notify(this.words, at, 1)
  }

  private load(at: number): number {
    return Atomics.load(this.words, at)
  }

  private wordOf(slot: number): number {
    return WORD.firstSlot + SLOT_WORDS * slot
  }
}
