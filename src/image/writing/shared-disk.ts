/**
 * A disk that several threads read and write: decides which thread may do what when, and how a write is done.
 *
 *  (1) Overwriting in place holds the shared side of the lock. Everything else holds the exclusive side. A flush holds that
 *      only while it collects its work and while it settles.
 *  (2) A write is counted when it is done. A flush covers the writes that were counted when it began.
 *  (3) After a failed sync, or after damage, nothing is written any more, because the content of the disk is unknown. All other
 *      failures are undone and may be tried again.
 */
import type { DiskMemory } from './disk-memory.js'
import { DiskFailure } from './disk-failure.js'
import { DiskLock } from './disk-lock.js'
import { type DiskSteps, OwnSteps, ReserveSteps, WriteSteps, ZeroSteps } from './disk-steps.js'
import { isOutOfSpace } from './out-of-space.js'
import type {
  DiskHooks,
  FirstChange,
  WritableDisk,
  WritableDriver,
} from '../../formats/writable.js'
import { Scratch, type WritableView } from './write-engine.js'
import { areZeros, MIN_ZEROS_BYTES } from './zeros.js'
import { atOffset } from '../../errors.js'

/** Indexes of `DiskMemory.counters`. */
const COUNTER = { writes: 0, flushed: 1, begun: 2, failed: 3, generation: 4, mapped: 5 } as const

/** How long steps may hold the disk, in milliseconds. */
const HOLD_MS = 20
/** The most flushes in a row that may be needed to give back all freed space. */
const MAX_FLUSHES = 1000

export class SharedDisk implements WritableDisk {
  private readonly lock: DiskLock
  private readonly counters: Int32Array
  private readonly times: Float64Array
  private readonly failed: DiskFailure
  private readonly scratch = new Scratch()
  private readonly driver: WritableDriver
  private generation = 0

  /**
   * @param view the disk; its driver and those of all other threads work on `memory`
   * @param hooks callbacks, and the image's files
   */
  constructor(
    private readonly view: WritableView,
    memory: DiskMemory,
    thread: number,
    path: string,
    private readonly hooks: DiskHooks = {},
  ) {
    this.driver = view.driver
    this.lock = new DiskLock(memory.lock, thread, hooks.onStall && { onStall: hooks.onStall })
    this.counters = new Int32Array(memory.counters)
    this.times = new Float64Array(memory.times)
    this.failed = new DiskFailure(this.counters, COUNTER.failed, memory.message, path)
  }

  get sizeBytes(): number {
    this.refresh()
    return this.driver.sizeBytes
  }

  get modified(): number {
    return this.times[0] as number
  }

  get isDirty(): boolean {
    return Atomics.load(this.counters, COUNTER.writes) !== this.flushedWrites()
  }

  get isMapped(): boolean {
    return Atomics.load(this.counters, COUNTER.mapped) !== 0
  }

  noteMaps(): void {
    Atomics.store(this.counters, COUNTER.mapped, 1)
  }

  get writeErrno(): number {
    return this.failed.errno
  }

  get failure(): string {
    return this.failed.reason
  }

  end(why: string): void {
    this.failed.set(why)
  }

  beginRead(offset: number, length: number): void {
    this.lock.acquireShared(offset, length, false)
    this.refresh()
  }

  endRead(): void {
    this.lock.releaseShared()
  }

  checkFiles(): void {
    if (this.writeErrno !== 0) return
    try {
      for (const file of this.hooks.files ?? []) file.requireWhole?.(true)
    } catch (error) {
      this.failed.record(error)
    }
  }

  write(source: Buffer, start: number, length: number, offset: number): void {
    this.counted(() => {
      if (this.driver.detectsZeros && length >= MIN_ZEROS_BYTES) {
        this.writeBetweenZeros(source, start, length, offset)
      } else this.writeBytes(source, start, length, offset)
    })
  }

  zero(offset: number, length: number): void {
    this.counted(() => this.zeroRange(offset, length))
  }

  reserve(offset: number, length: number): void {
    this.counted(() => this.alone(new ReserveSteps(this.view, this.scratch, offset, length)))
  }

  own(offset: number, length: number, areZeros: boolean): void {
    this.counted(() => this.alone(new OwnSteps(this.view, this.scratch, offset, length, areZeros)))
  }

  flush(): void {
    // All writes of programs through maps count as one, which came before.
    if (this.isMapped) Atomics.add(this.counters, COUNTER.writes, 1)
    const mine = Atomics.load(this.counters, COUNTER.writes)
    this.lock.acquireFlush()
    try {
      // Skip it if a flush that began after our last write has covered that. The difference allows for counts that wrap around.
      if (((this.flushedWrites() - mine) | 0) < 0) this.flushOnce()
    } finally {
      this.lock.releaseFlush()
    }
  }

  grow(sizeBytes: number): void {
    this.failed.requireSound()
    this.lock.acquireGrowth()
    try {
      const before = this.sizeBytes
      if (sizeBytes <= before) return
      this.driver.checkGrowth(sizeBytes)
      this.growFrom(before, sizeBytes)
    } finally {
      this.lock.releaseGrowth()
    }
  }

  private growFrom(before: number, sizeBytes: number): void {
    this.orAgain(() => this.resize(sizeBytes))
    try {
      // Old bytes past the old end, from a larger disk or from a lower layer, must not appear.
      this.zero(before, sizeBytes - before)
      this.flush()
    } catch (error) {
      this.resize(before)
      throw error
    }
    this.whileAlone(() => this.driver.keepSize())
  }

  private resize(sizeBytes: number): void {
    this.lock.acquireFlush()
    try {
      this.whileAlone(() => {
        this.begin()
        this.driver.grow(sizeBytes)
        Atomics.add(this.counters, COUNTER.generation, 1)
      })
    } finally {
      this.lock.releaseFlush()
    }
  }

  /** Runs `act` under the exclusive side. Records what it throws. */
  private whileAlone<T>(act: () => T): T {
    this.lock.acquire()
    try {
      this.refresh()
      return act()
    } catch (error) {
      throw this.failed.record(error)
    } finally {
      this.lock.release()
    }
  }

  close(): readonly string[] {
    if (Atomics.load(this.counters, COUNTER.begun) === 0 && !this.isMapped) return []
    this.lock.acquireFlush()
    try {
      this.flushAll()
      return this.whileAlone(() => this.driver.close())
    } finally {
      this.lock.releaseFlush()
    }
  }

  private flushedWrites(): number {
    return Atomics.load(this.counters, COUNTER.flushed)
  }

  private counted(act: () => void): void {
    this.failed.requireSound()
    try {
      act()
    } finally {
      // A write that fails half-way may have changed something, too.
      this.count()
    }
  }

  private count(): void {
    this.times[0] = Date.now()
    Atomics.add(this.counters, COUNTER.writes, 1)
  }

  private refresh(): void {
    const generation = Atomics.load(this.counters, COUNTER.generation)
    if (generation === this.generation) return
    this.driver.refresh()
    this.generation = generation
  }

  /** Prepares the first write. The caller holds the exclusive side. */
  private begin(first?: FirstChange): void {
    if (Atomics.load(this.counters, COUNTER.begun) !== 0) return
    this.driver.begin(first)
    Atomics.store(this.counters, COUNTER.begun, 1)
  }

  /** Splits a write, unit by unit, into zeros and the rest. */
  private writeBetweenZeros(source: Buffer, start: number, length: number, offset: number): void {
    const unit = this.driver.zeroUnitBytes
    let done = 0
    for (let at = 0; at < length; ) {
      let end = Math.min(length, at + unit - ((offset + at) % unit))
      const isWhole = end - at === unit
      if (!areZeros(source, start + at, end - at)) {
        at = end
        continue
      }
      if (at > done) this.writeBytes(source, start + done, at - done, offset + done)
      while (isWhole && end + unit <= length && areZeros(source, start + end, unit)) end += unit
      if (isWhole) this.zeroRange(offset + at, end - at)
      else this.writeZeros(source, start + at, end - at, offset + at)
      at = end
      done = end
    }
    if (done < length) this.writeBytes(source, start + done, length - done, offset + done)
  }

  /** Writes zeros that cover no whole unit. They take no space where the disk already reads as zeros. */
  private writeZeros(source: Buffer, start: number, length: number, offset: number): void {
    const done = this.orAgain(() => this.overwrite(source, start, length, offset))
    if (done < length) this.zeroRange(offset + done, length - done)
  }

  private writeBytes(source: Buffer, start: number, length: number, offset: number): void {
    const done = this.orAgain(() => this.overwrite(source, start, length, offset))
    if (done < length) this.writeAlone(source, start + done, length - done, offset + done)
  }

  /** Writes the first bytes that can be written in place, beside other threads. Returns how many. */
  private overwrite(source: Buffer, start: number, length: number, offset: number): number {
    // The first write of a mount needs the disk alone.
    if (Atomics.load(this.counters, COUNTER.begun) === 0) return 0
    const { driver } = this
    let done = 0
    this.lock.acquireShared(offset, length, true)
    try {
      this.refresh()
      for (;;) {
        const found = driver.overwritable(offset + done, length - done)
        if (!found) break
        if (done === 0) driver.mark(offset, length)
        found.store.write(source, start + done, found.length, found.at, offset + done)
        done += found.length
        if (done === length) break
      }
    } catch (error) {
      throw this.failed.record(atOffset(error, offset + done))
    } finally {
      this.lock.releaseShared()
    }
    return done
  }

  private writeAlone(source: Buffer, start: number, length: number, offset: number): void {
    this.alone(new WriteSteps(this.view, this.scratch, source, start, length, offset))
  }

  private zeroRange(offset: number, length: number): void {
    this.alone(new ZeroSteps(this.view, this.scratch, offset, length))
  }

  /**
   * Makes all steps with the disk alone. It releases the lock between steps if it has to flush to make room for the next one,
   * and now and then for other threads: zeroing may go over a whole disk.
   */
  private alone(steps: DiskSteps): void {
    this.orAgain(() => this.stepAlone(steps))
  }

  private stepAlone(steps: DiskSteps): void {
    for (let flushes = 0; ; ) {
      let hasCapacity = false
      this.lock.acquire()
      try {
        this.refresh()
        this.failed.requireSound()
        this.begin(steps)
        steps.begin()
        const until = performance.now() + HOLD_MS
        do {
          hasCapacity = this.driver.hasCapacity()
          if (hasCapacity && steps.next()) return
        } while (hasCapacity && performance.now() < until)
      } catch (error) {
        throw this.failed.record(error)
      } finally {
        this.lock.release()
      }
      if (hasCapacity) {
        this.lock.yieldToWaiting()
        continue
      }
      if (flushes++ > MAX_FLUSHES) throw new Error('flushing makes no room')
      this.lock.acquireFlush()
      try {
        this.flushOnce()
      } finally {
        this.lock.releaseFlush()
      }
    }
  }

  /** Runs `act`. If there was too little room, makes room and runs it once more. */
  private orAgain<T>(act: () => T): T {
    try {
      return act()
    } catch (error) {
      this.reclaimSpace(error)
      return act()
    }
  }

  /**
   * After a write that found no room: gives back all freed space, and makes the driver search the whole file. Throws `error`
   * again if that cannot help.
   */
  private reclaimSpace(error: unknown): void {
    if (!isOutOfSpace(error) || Atomics.load(this.counters, COUNTER.begun) === 0) throw error
    this.lock.acquireFlush()
    try {
      this.flushAll()
      this.whileAlone(() => this.driver.lookEverywhere())
    } finally {
      this.lock.releaseFlush()
    }
  }

  /** Flushes once. The caller holds the right to flush. Returns whether there is more to flush. */
  private flushOnce(): boolean {
    this.failed.requireSound()
    const upTo = Atomics.load(this.counters, COUNTER.writes)
    const flush = this.whileAlone(() => this.driver.collect())
    try {
      flush.run()
    } catch (error) {
      throw this.failed.record(error, true)
    }
    this.whileAlone(() => flush.settle())
    Atomics.store(this.counters, COUNTER.flushed, upTo)
    return flush.hasMore
  }

  private flushAll(): void {
    for (let i = 0; i < MAX_FLUSHES; i++) if (!this.flushOnce()) return
  }
}
