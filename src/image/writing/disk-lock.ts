/**
 * The lock of a disk that several threads read and write.
 *
 *  (1) A thread that reads or overwrites in place holds the shared side, in its own slot. A thread that changes where data
 *      lie holds the exclusive side, alone.
 *  (2) A slot says which stripes of the disk the thread touches, and whether it writes them. A thread that writes shares no
 *      stripe with another one, so no reader sees half a sector.
 *  (3) Each thread publishes its slot before it looks at the others. So if two meet, at least one sees the other. Then the
 *      higher slot is given up, and the lower one waits until it is gone.
 *
 *  (4) A thread waits for another one as long as that is alive: storage may stall for hours. A thread that has ended without
 *      releasing the lock is found by its id.
 *
 * A slot is one word, so that publishing is one store: stripes in bits 0 to 29, bit 30 for writing.
 */
import { currentThread, isThreadAlive } from '../../io/threads.js'

const EXCLUSIVE = 0
const WAITING = 1
const FLUSHING = 2
const GROWING = 3
const SLOTS = 8

/** How much of the disk a stripe takes, in bytes, before the stripes start over. */
const STRIPE_BYTES = 16 * 1024
const STRIPES = 30
const ALL_STRIPES = 2 ** STRIPES - 1
const WRITES = 1 << 30
/** Marks a slot as used, also if the thread touches no stripe. */
const PRESENT = 1 << 31

/** How often a thread looks at a word before it sleeps: most holders release it within a microsecond or two. */
const SPINS = 300
const SLEEP_MS = 50
/** How often a waiting thread looks whether the other one is alive. */
const LOOK_MS = 1000
/** The first report of a stall; each further one comes after twice the time. */
const STALL_MS = 30_000

/** A word on which nobody calls notify. */
const NEVER = new Int32Array(new SharedArrayBuffer(4))

/** @param threads how many threads take part */
export function createLockMemory(threads: number): SharedArrayBuffer {
  return new SharedArrayBuffer(4 * (SLOTS + 2 * threads))
}

export interface StallWatch {
  /** Called now and then while a thread waits, with the seconds since it began. */
  readonly onStall: (seconds: number) => void
  readonly stallMs?: number
}

/** One thread's side of the lock. A thread holds one side at a time. */
export class DiskLock {
  private readonly words: Int32Array
  /** The kernel's ids of the threads, by slot. */
  private readonly ids: Int32Array
  private readonly slot: number

  /** Must be called by the thread itself. */
  constructor(
    memory: SharedArrayBuffer,
    thread: number,
    private readonly watch?: StallWatch,
  ) {
    const threads = (memory.byteLength / 4 - SLOTS) / 2
    this.words = new Int32Array(memory, 0, SLOTS + threads)
    this.ids = new Int32Array(memory, 4 * threads)
    this.slot = SLOTS + thread
    Atomics.store(this.ids, this.slot, currentThread())
  }

  /** Takes the shared side, for `length` bytes of the disk at `offset`. */
  acquireShared(offset: number, length: number, writes: boolean): void {
    const value = stripesOf(offset, length) | (writes ? WRITES : 0) | PRESENT
    const { words, slot } = this
    for (;;) {
      Atomics.store(words, slot, value)
      const owner = Atomics.load(words, EXCLUSIVE)
      if (owner === 0) {
        if (this.passes(value)) return
      } else {
        this.releaseShared()
        this.waitWhile(EXCLUSIVE, owner)
      }
    }
  }

  releaseShared(): void {
    this.releaseWord(this.slot)
  }

  /** Takes the exclusive side: waits until no thread holds the shared one. */
  acquire(): void {
    this.acquireWord(EXCLUSIVE)
    const { words, slot } = this
    for (let other = SLOTS; other < words.length; other++) {
      if (other === slot) continue
      for (let held = Atomics.load(words, other); held !== 0; held = Atomics.load(words, other)) {
        this.waitWhile(other, held)
      }
    }
  }

  release(): void {
    this.releaseWord(EXCLUSIVE)
  }

  /** Lets waiting threads go first, after this one has released the lock and before it takes it again. */
  yieldToWaiting(): void {
    if (Atomics.load(this.words, WAITING) > 0) Atomics.wait(NEVER, 0, 0, 1)
  }

  /** Takes the right to flush, independent of both sides: one thread at a time. */
  acquireFlush(): void {
    this.acquireWord(FLUSHING)
  }

  releaseFlush(): void {
    this.releaseWord(FLUSHING)
  }

  /** Takes the right to make the disk larger, before all other rights. */
  acquireGrowth(): void {
    this.acquireWord(GROWING)
  }

  releaseGrowth(): void {
    this.releaseWord(GROWING)
  }

  private acquireWord(word: number): void {
    const { words, slot } = this
    for (;;) {
      const owner = Atomics.compareExchange(words, word, 0, slot)
      if (owner === 0) return
      this.waitWhile(word, owner)
    }
  }

  private releaseWord(word: number): void {
    Atomics.store(this.words, word, 0)
    if (Atomics.load(this.words, WAITING) > 0) Atomics.notify(this.words, word)
  }

  /** Reports whether no other thread conflicts. If it returns false, the slot has been given up: rule (3). */
  private passes(value: number): boolean {
    const { words, slot } = this
    for (let other = SLOTS; other < words.length; other++) {
      if (other === slot) continue
      for (
        let held = Atomics.load(words, other);
        conflict(value, held);
        held = Atomics.load(words, other)
      ) {
        if (other < slot) {
          this.releaseShared()
          this.waitWhile(other, held)
          return false
        }
        this.waitWhile(other, held)
      }
    }
    return true
  }

  /** Returns when `word` is no longer `value`. Throws if the thread that holds it is dead. */
  private waitWhile(word: number, value: number): void {
    const { words } = this
    for (let i = 0; i < SPINS; i++) if (Atomics.load(words, word) !== value) return
    const began = performance.now()
    let lookMs = LOOK_MS
    let reportMs = this.watch?.stallMs ?? STALL_MS
    while (Atomics.load(words, word) === value) {
      // Count this thread before it sleeps: a thread that releases the word after that wakes it.
      Atomics.add(words, WAITING, 1)
      Atomics.wait(words, word, value, SLEEP_MS)
      Atomics.sub(words, WAITING, 1)
      const waitedMs = performance.now() - began
      if (waitedMs >= reportMs) {
        this.watch?.onStall(Math.round(waitedMs / 1000))
        reportMs *= 2
      }
      if (waitedMs < lookMs) continue
      lookMs = waitedMs + LOOK_MS
      this.requireAlive(word, value)
    }
  }

  /** Applies rule (4). */
  private requireAlive(word: number, value: number): void {
    const holder = word < SLOTS ? value : word
    if (isThreadAlive(Atomics.load(this.ids, holder))) return
    // The thread may have released the word before it ended.
    if (Atomics.load(this.words, word) === value) {
      throw new Error('a thread that holds the disk has died')
    }
  }
}

const conflict = (one: number, other: number): boolean =>
  (one & other & ALL_STRIPES) !== 0 && ((one | other) & WRITES) !== 0

function stripesOf(offset: number, length: number): number {
  if (length === 0) return 0
  const first = Math.floor(offset / STRIPE_BYTES)
  const count = Math.floor((offset + length - 1) / STRIPE_BYTES) - first + 1
  if (count >= STRIPES) return ALL_STRIPES
  const run = 2 ** count - 1
  const shift = first % STRIPES
  // After the last stripe comes the first one again.
  return ((run << shift) | (run >>> (STRIPES - shift))) & ALL_STRIPES
}
