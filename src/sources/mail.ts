/**
 * Memory by which threads that read ask the network thread for blocks, and wait for them.
 *
 *  (1) A slot's fields are written before its state becomes WAITING.
 *  (2) A state carries a number that grows with each request. The network thread answers only the request that it has seen: a
 *      reader that has given up may have used its slot again.
 *  (3) The bytes are not here: an answer says that the blocks are in the object's files.
 */
import { constants } from 'node:os'
import { ImageError } from '../errors.js'
import { isThreadAlive } from '../io/threads.js'

const FREE = 0
const CLAIMED = 1
const WAITING = 2
const DONE = 3
const FAILED = 4
const STATES = 8

const SLOTS = 64
/** Words of the whole: a word that changes with each request, one that says that nobody may wait any more, the thread's id. */
const BELL = 0
const ENDED = 1
const THREAD = 2
const ROOM = 3
const HEAD_WORDS = 16
const SLOT = { state: 0, object: 1, first: 2, count: 3, textBytes: 4 } as const
const SLOT_WORDS = 8
const TEXT_BYTES = 512
const TEXT_AT = 4 * (HEAD_WORDS + SLOTS * SLOT_WORDS)
/** How often a waiting thread looks whether the network thread is alive. */
const LOOK_MS = 500

/** A request that the network thread has seen. */
export interface Asked {
  readonly slot: number
  /** The state of the slot as it was seen. */
  readonly state: number
  readonly object: number
  readonly first: number
  readonly count: number
}

export const mailMemory = (): SharedArrayBuffer =>
  new SharedArrayBuffer(TEXT_AT + SLOTS * TEXT_BYTES)

export class Mail {
  private readonly words: Int32Array
  private readonly texts: Buffer

  constructor(memory: SharedArrayBuffer) {
    this.words = new Int32Array(memory)
    this.texts = Buffer.from(memory, TEXT_AT)
  }

  /** Makes all that wait return with an error, and all that will ask. */
  end(): void {
    Atomics.store(this.words, ENDED, 1)
    for (let slot = 0; slot < SLOTS; slot++) Atomics.notify(this.words, wordOf(slot, SLOT.state))
    this.ring()
  }

  get isEnded(): boolean {
    return Atomics.load(this.words, ENDED) === 1
  }

  /** Wakes the network thread. */
  ring(): void {
    Atomics.add(this.words, BELL, 1)
    Atomics.notify(this.words, BELL)
  }

  /**
   * Asks for `count` blocks from `first` on, and waits until they are in the object's files, or lost again. Throws ImageError.
   * @param path the address, for messages
   */
  ask(object: number, first: number, count: number, path: string): void {
    const slot = this.claim(path)
    const at = wordOf(slot, SLOT.state)
    const state = this.post(slot, object, first, count)
    for (;;) {
      const now = Atomics.load(this.words, at)
      if (now !== state) {
        this.take(slot, now, path)
        return
      }
      if (this.isEnded || !isThreadAlive(Atomics.load(this.words, THREAD))) {
        if (Atomics.compareExchange(this.words, at, state, freed(state)) === state) {
          throw unreachable(path, this.isEnded ? 'the mount ends' : 'the network thread has ended')
        }
        continue
      }
      Atomics.wait(this.words, at, state, LOOK_MS)
    }
  }

  /** Does the same without blocking the thread. */
  async askApart(object: number, first: number, count: number, path: string): Promise<void> {
    const slot = this.claim(path)
    const at = wordOf(slot, SLOT.state)
    const state = this.post(slot, object, first, count)
    // Waiting in shared memory does not keep a program alive.
    const alive = setInterval(() => {}, LOOK_MS)
    try {
      for (;;) {
        const now = Atomics.load(this.words, at)
        if (now !== state) {
          this.take(slot, now, path)
          return
        }
        if (!isThreadAlive(Atomics.load(this.words, THREAD))) {
          throw unreachable(path, 'the network thread has ended')
        }
        const wait = Atomics.waitAsync(this.words, at, state, LOOK_MS)
        if (wait.async) await wait.value
      }
    } finally {
      clearInterval(alive)
    }
  }

  private claim(path: string): number {
    for (;;) {
      const room = Atomics.load(this.words, ROOM)
      for (let slot = 0; slot < SLOTS; slot++) {
        const at = wordOf(slot, SLOT.state)
        const state = Atomics.load(this.words, at)
        if (state % STATES !== FREE) continue
        if (Atomics.compareExchange(this.words, at, state, state + CLAIMED) === state) return slot
      }
      if (this.isEnded) throw unreachable(path, 'the mount ends')
      Atomics.wait(this.words, ROOM, room, LOOK_MS)
    }
  }

  private post(slot: number, object: number, first: number, count: number): number {
    const at = wordOf(slot, SLOT.state)
    this.words[wordOf(slot, SLOT.object)] = object
    this.words[wordOf(slot, SLOT.first)] = first
    this.words[wordOf(slot, SLOT.count)] = count
    const state = Atomics.load(this.words, at) - CLAIMED + WAITING
    Atomics.store(this.words, at, state)
    this.ring()
    return state
  }

  private take(slot: number, state: number, path: string): void {
    const bytes = this.words[wordOf(slot, SLOT.textBytes)] as number
    const text = this.texts.toString('utf8', slot * TEXT_BYTES, slot * TEXT_BYTES + bytes)
    Atomics.store(this.words, wordOf(slot, SLOT.state), freed(state))
    Atomics.add(this.words, ROOM, 1)
    Atomics.notify(this.words, ROOM)
    if (state % STATES === FAILED) throw unreachable(path, text)
  }

  /** The network thread's side: says which thread it is. */
  serveAs(thread: number): void {
    Atomics.store(this.words, THREAD, thread)
  }

  /** Returns the requests that wait for an answer, and were not among `known`, by slot. */
  asked(known: ReadonlyMap<number, Asked>): Asked[] {
    const found: Asked[] = []
    for (let slot = 0; slot < SLOTS; slot++) {
      const state = Atomics.load(this.words, wordOf(slot, SLOT.state))
      if (state % STATES !== WAITING || known.get(slot)?.state === state) continue
      const [object, first, count] = [SLOT.object, SLOT.first, SLOT.count].map(
        field => this.words[wordOf(slot, field)],
      ) as [number, number, number]
      found.push({ slot, state, object, first, count })
    }
    return found
  }

  /** Answers a request. @param problem why the blocks cannot be had; undefined if they can */
  answer({ slot, state }: Asked, problem?: string): void {
    const at = wordOf(slot, SLOT.state)
    if (Atomics.load(this.words, at) !== state) return
    const bytes = this.texts.write(problem ?? '', slot * TEXT_BYTES, TEXT_BYTES, 'utf8')
    this.words[wordOf(slot, SLOT.textBytes)] = bytes
    const outcome = state - WAITING + (problem === undefined ? DONE : FAILED)
    Atomics.compareExchange(this.words, at, state, outcome)
    Atomics.notify(this.words, at)
  }

  /** Resolves when `ring` is called after the bell was at `seen`, or after some time. */
  async heard(seen: number, waitMs: number): Promise<void> {
    const wait = Atomics.waitAsync(this.words, BELL, seen, waitMs)
    if (wait.async) await wait.value
  }

  get bell(): number {
    return Atomics.load(this.words, BELL)
  }
}

const wordOf = (slot: number, field: number): number => HEAD_WORDS + slot * SLOT_WORDS + field

/** The state of a free slot, with the next number. */
const freed = (state: number): number =>
  (((state - (state % STATES)) / STATES + 1) % 2 ** 27) * STATES

/** Returns the error for bytes that cannot be had. */
export const unreachable = (path: string, why: string): ImageError =>
  new ImageError('CORRUPT', why, { path }, { cause: { errno: constants.errno.EIO } })
