/**
 * Decides which worker waits for the next request, and how.
 *
 * Waking a thread costs as much as answering a request. So a worker that has just answered polls for a moment before it
 * sleeps in the kernel. Every request wakes a worker that sleeps there, also a request that the polling worker takes. With
 * one client at a time, the sleeping workers cost more than they help. So:
 *
 *  (1) One worker at a time polls, for POLL_MS, and only after a request: an idle mount costs nothing.
 *  (2) A worker that finds request after request in this way, none of which had waited, becomes the leader. The others are
 *      parked outside the kernel's queue.
 *  (3) It stops leading if it finds nothing in time, if requests have waited for it, or if it has been busy with one for
 *      LONG_MS. Then the others are back.
 *  (4) It also stops if polling takes time from others. A worker that has found nothing MISSES times in a row does not poll
 *      for PAUSE_MS. One that has been off its processor while it polled, so that the clock has jumped by PREEMPTED_MS, pauses
 *      for twice as long as the last time, LONGEST_PAUSE_MS at most, until it has found STEADY requests in a row.
 */
import { constants } from 'node:os'
import { errno, read } from '../../io/libc.js'

const TOKEN = 0
const LEADER = 1
/** How many requests leaders have taken. */
const TAKEN = 2
const WORDS = 3

const POLL_MS = 0.05
const LONG_MS = 20
/** How many prompt requests in a row make a worker the leader, and how many late ones end that. */
const TO_LEAD = 4
const TO_RESIGN = 2
const PREEMPTED_MS = 1
const MISSES = 8
const PAUSE_MS = 5
const LONGEST_PAUSE_MS = 320
const STEADY = 1000

const { EAGAIN } = constants.errno

export const createPollMemory = (): SharedArrayBuffer => new SharedArrayBuffer(4 * WORDS)

/** One worker's part. `take` is read(2) and `now` a clock in milliseconds; tests replace them. */
export class Poller {
  private readonly words: Int32Array
  private readonly me: number
  /** How many requests in a row had not waited, and how many had. */
  private prompt = 0
  private late = 0
  /** How many polls in a row have found nothing. */
  private missed = 0
  /** The end of a pause; 0 without one. */
  private pausedUntil = 0
  private pauseMs = 0

  constructor(
    memory: SharedArrayBuffer,
    worker: number,
    private readonly take: (device: number, target: Buffer, bytes: number) => number = read,
    private readonly reason: () => number = errno,
    private readonly now: () => number = () => performance.now(),
  ) {
    this.words = new Int32Array(memory)
    this.me = worker + 1
  }

  /** Returns the length of the next message, or -1 if this worker should sleep until one comes. */
  poll(device: number, message: Buffer): number {
    const { words, me } = this
    const leader = Atomics.load(words, LEADER)
    if (leader !== 0 && leader !== me) {
      this.park(leader)
      return -1
    }
    if (this.pausedUntil !== 0 && this.pauses()) return -1
    if (leader === 0 && Atomics.compareExchange(words, TOKEN, 0, me) !== 0) return -1
    let length = this.take(device, message, message.length)
    const hasWaited = length >= 0
    if (!hasWaited) length = this.spin(device, message)
    if (leader === 0) Atomics.store(words, TOKEN, 0)
    this.updateLeader(leader === me, length >= 0, hasWaited)
    return length
  }

  private spin(device: number, message: Buffer): number {
    let now = this.now()
    const deadline = now + POLL_MS
    let length = -1
    while (length < 0 && this.reason() === EAGAIN && now < deadline) {
      length = this.take(device, message, message.length)
      const before = now
      now = this.now()
      if (now - before >= PREEMPTED_MS) this.pauseLonger(now)
    }
    this.missed = length < 0 ? this.missed + 1 : 0
    if (this.missed >= MISSES) this.pause(now, PAUSE_MS)
    return length
  }

  private pauseLonger(now: number): void {
    this.pauseMs = Math.min(Math.max(PAUSE_MS, 2 * this.pauseMs), LONGEST_PAUSE_MS)
    this.pause(now, this.pauseMs)
  }

  private pause(now: number, ms: number): void {
    this.missed = 0
    this.prompt = 0
    this.pausedUntil = now + ms
  }

  private pauses(): boolean {
    if (this.now() < this.pausedUntil) return true
    this.pausedUntil = 0
    return false
  }

  /** Applies rules (2) to (4). */
  private updateLeader(leads: boolean, isFound: boolean, hasWaited: boolean): void {
    this.prompt = isFound && !hasWaited ? this.prompt + 1 : 0
    this.late = hasWaited ? this.late + 1 : 0
    if (this.prompt >= STEADY) this.pauseMs = 0
    const isPaused = this.pausedUntil !== 0
    if (leads) {
      Atomics.add(this.words, TAKEN, 1)
      if (!isFound || isPaused || this.late >= TO_RESIGN) this.end(this.me)
    } else if (!isPaused && this.prompt >= TO_LEAD)
      Atomics.compareExchange(this.words, LEADER, 0, this.me)
  }

  /** Waits until no worker leads. */
  private park(leader: number): void {
    const { words } = this
    for (let taken = Atomics.load(words, TAKEN); Atomics.load(words, LEADER) === leader; ) {
      if (Atomics.wait(words, LEADER, leader, LONG_MS) !== 'timed-out') continue
      const now = Atomics.load(words, TAKEN)
      if (now === taken) this.end(leader)
      taken = now
    }
  }

  private end(leader: number): void {
    if (Atomics.compareExchange(this.words, LEADER, leader, 0) !== leader) return
    Atomics.notify(this.words, LEADER)
  }
}
