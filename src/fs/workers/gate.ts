/**
 * The gate through which every request passes, so that the main thread can change what a mount shows while workers serve it.
 *
 *  (1) A worker counts up when it takes a request and again when it has answered it: an odd count says that it is inside. It
 *      looks at the gate after it has counted.
 *  (2) The main thread sets the gate, and then waits until each worker is outside, or has counted since. From then on every
 *      request obeys the gate.
 *  (3) The number of the world is in the same word as the state, so that an open gate costs one comparison.
 *
 * A worker that has not started has the count 0: it is outside.
 */
const WORD = 0
const COUNTS = 1

/** `changesWait`: requests that change the disk wait. `allWait`: all wait, for milliseconds only. */
export const GATE = { open: 0, changesWait: 1, allWait: 2 } as const
type GateState = (typeof GATE)[keyof typeof GATE]
const STATES = 4

/** How often a count is looked at before the thread sleeps, and for how long, in milliseconds. */
const SPINS = 1000
const SLEEP_MS = 0.2
/** How long a thread that has other work sleeps between looks. */
const LOOK_MS = 1

/** A word on which nobody calls notify. */
const NEVER = new Int32Array(new SharedArrayBuffer(4))

/** @param workers how many workers pass; without any, the main thread serves */
export const createGateMemory = (workers: number): SharedArrayBuffer =>
  new SharedArrayBuffer(4 * (COUNTS + workers))

/** The main thread's side. */
export class Gate {
  private readonly words: Int32Array
  private world = 0

  constructor(readonly shared: SharedArrayBuffer) {
    this.words = new Int32Array(shared)
  }

  set(state: GateState): void {
    Atomics.store(this.words, WORD, this.world * STATES + state)
    Atomics.notify(this.words, WORD)
  }

  /** Whether requests that change the disk wait. */
  get holdsChanges(): boolean {
    return holdsChanges(this.words)
  }

  /** Makes workers take the world `number` before their next request. They can take it already. The state stays. */
  raise(number: number): void {
    const state = Atomics.load(this.words, WORD) % STATES
    this.world = number
    this.set(state as GateState)
  }

  /** Resolves when each worker has been outside since the call. Other work of this thread goes on meanwhile. */
  async drained(): Promise<void> {
    const left = this.inside()
    while (this.anyOf(left)) await new Promise(resolve => setTimeout(resolve, LOOK_MS))
  }

  /** Returns when each worker has been outside since the call. */
  drainNow(): void {
    const left = this.inside()
    for (let looks = 0; this.anyOf(left); looks++) {
      if (looks > SPINS) Atomics.wait(NEVER, 0, 0, SLEEP_MS)
    }
  }

  /** Returns how often a worker has entered and left: odd while it is inside. */
  countOf(worker: number): number {
    return Atomics.load(this.words, COUNTS + worker)
  }

  /** A worker has died, perhaps inside: nobody waits for it any more. */
  abandon(worker: number): void {
    if (this.countOf(worker) % 2 !== 0) Atomics.add(this.words, COUNTS + worker, 1)
  }

  /** Returns the counts of the workers that are inside, by their places. */
  private inside(): Map<number, number> {
    const found = new Map<number, number>()
    for (let place = COUNTS; place < this.words.length; place++) {
      const count = Atomics.load(this.words, place)
      if (count % 2 !== 0) found.set(place, count)
    }
    return found
  }

  private anyOf(left: Map<number, number>): boolean {
    for (const [place, count] of left) {
      if (Atomics.load(this.words, place) !== count) left.delete(place)
    }
    return left.size > 0
  }
}

/** One worker's side. */
export class GatePass {
  private readonly words: Int32Array
  private readonly place: number
  private count = 0
  /** The word of the open gate. */
  private open: number

  /**
   * @param world the number of the world that the worker shows
   * @param adopt called before a request if there is a newer world: takes it, and returns its number
   */
  constructor(
    shared: SharedArrayBuffer,
    worker: number,
    world: number,
    private readonly adopt: () => number,
  ) {
    this.words = new Int32Array(shared)
    this.place = COUNTS + worker
    this.open = world * STATES
  }

  /** Enters for a request. Returns whether the gate is open; if not, ask `admit`. */
  enter(): boolean {
    this.step()
    return Atomics.load(this.words, WORD) === this.open
  }

  leave(): void {
    this.step()
  }

  /**
   * Waits while all requests wait, and takes a newer world. Returns false for a request that has to wait longer, and then the
   * worker is outside.
   * @param isChange whether the request changes the disk
   * @param waits whether to wait instead of returning false
   */
  admit(isChange: boolean, waits: boolean): boolean {
    for (;;) {
      const word = Atomics.load(this.words, WORD)
      const state = word % STATES
      if (state === GATE.allWait || (state === GATE.changesWait && isChange && waits)) {
        this.leave()
        Atomics.wait(this.words, WORD, word)
        this.step()
        continue
      }
      if (word - state !== this.open) this.open = this.adopt() * STATES
      if (state === GATE.open || !isChange) return true
      this.leave()
      return false
    }
  }

  /** Whether requests that change the disk wait. */
  get holdsChanges(): boolean {
    return holdsChanges(this.words)
  }

  private step(): void {
    this.count = (this.count + 1) | 0
    Atomics.store(this.words, this.place, this.count)
  }
}

const holdsChanges = (words: Int32Array): boolean =>
  Atomics.load(words, WORD) % STATES !== GATE.open
