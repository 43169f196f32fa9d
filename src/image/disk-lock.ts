/**
 * The lock of a disk that several threads read and write.
 *
 *  (1) Whoever reads or overwrites in place holds the shared side, each thread in a slot of its own;
 *      whoever changes what is where holds the exclusive side, alone.
 *  (2) A slot says which stripes of the disk are touched, and whether they are written. A thread that
 *      writes shares no stripe with another one: no reader sees half a sector.
 *  (3) Each thread publishes its slot before it looks at the others', so of two that meet at least one
 *      sees the other. The higher slot then gives way and the lower one waits for it to be gone.
 *
 *  (4) A thread waits for as long as the one in its way is alive: storage may stall for hours. One that has ended
 *      without giving up what it held is found by its id.
 *
 * A slot is one word, so that publishing is one store: stripes in bits 0 to 29, bit 30 for writing.
 */
import { currentThread, isThreadAlive } from '../io/threads.js'

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
/** In the slot of a thread that touches nothing which anybody overwrites in place. */
const PRESENT = 1 << 31

/** Looks at a word before a thread sleeps: most holders are gone within a microsecond or two. */
const SPINS = 300
const SLEEP_MS = 50
/** How often a waiting thread looks whether the other one is alive. */
const LOOK_MS = 1000
/** The first report of a stall; each further one comes after twice the time. */
const STALL_MS = 30_000

/** What nobody wakes anyone by. */
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

  /** To be made by the thread itself. */
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

  /** The shared side, for `length` bytes of the disk at `offset`. */
  share(offset: number, length: number, writes: boolean): void {
    const value = stripesOf(offset, length) | (writes ? WRITES : 0) | PRESENT
    const { words, slot } = this
    for (;;) {
      Atomics.store(words, slot, value)
      const owner = Atomics.load(words, EXCLUSIVE)
      if (owner === 0) {
        if (this.passes(value)) return
      } else {
        this.unshare()
        this.waitWhile(EXCLUSIVE, owner)
      }
    }
  }

  unshare(): void {
    this.release(this.slot)
  }

  /** The exclusive side: waits until nobody holds the other. */
  take(): void {
    this.claim(EXCLUSIVE)
    const { words, slot } = this
    for (let other = SLOTS; other < words.length; other++) {
      if (other === slot) continue
      for (let held = Atomics.load(words, other); held !== 0; held = Atomics.load(words, other)) {
        this.waitWhile(other, held)
      }
    }
  }

  untake(): void {
    this.release(EXCLUSIVE)
  }

  /** Lets those in who wait for what this thread has just given up, before it takes it again. */
  giveWay(): void {
    if (Atomics.load(this.words, WAITING) > 0) Atomics.wait(NEVER, 0, 0, 1)
  }

  /** The right to flush, which goes beside both sides: one thread at a time. */
  takeFlush(): void {
    this.claim(FLUSHING)
  }

  untakeFlush(): void {
    this.release(FLUSHING)
  }

  /** The right to make the disk larger, which is taken before all others. */
  takeGrowth(): void {
    this.claim(GROWING)
  }

  untakeGrowth(): void {
    this.release(GROWING)
  }

  private claim(word: number): void {
    const { words, slot } = this
    for (;;) {
      const owner = Atomics.compareExchange(words, word, 0, slot)
      if (owner === 0) return
      this.waitWhile(word, owner)
    }
  }

  private release(word: number): void {
    Atomics.store(this.words, word, 0)
    if (Atomics.load(this.words, WAITING) > 0) Atomics.notify(this.words, word)
  }

  /** Whether no other thread is in the way; where false, the slot has been given up. Rule (3). */
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
          this.unshare()
          this.waitWhile(other, held)
          return false
        }
        this.waitWhile(other, held)
      }
    }
    return true
  }

  /** Returns when `word` is no longer `value`. Throws where the thread that holds it is dead. */
  private waitWhile(word: number, value: number): void {
    const { words } = this
    for (let i = 0; i < SPINS; i++) if (Atomics.load(words, word) !== value) return
    const began = performance.now()
    let lookMs = LOOK_MS
    let reportMs = this.watch?.stallMs ?? STALL_MS
    while (Atomics.load(words, word) === value) {
      // Counted before it sleeps: whoever releases after that wakes it.
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

  /** Rule (4). */
  private requireAlive(word: number, value: number): void {
    const holder = word < SLOTS ? value : word
    if (isThreadAlive(Atomics.load(this.ids, holder))) return
    // It may have let go before it ended.
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
  // Beyond the last stripe they go on with the first.
  return ((run << shift) | (run >>> (STRIPES - shift))) & ALL_STRIPES
}
