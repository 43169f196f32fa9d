/**
 * A disk that several threads read and write: who may do what when, and how a write comes about.
 *
 *  (1) What is overwritten in place goes under the shared side of the lock; all else under the
 *      exclusive side, which a flush holds only to take down what it has to do and to settle it.
 *  (2) A write counts when it is done, a flush covers the writes that were counted when it began.
 *  (3) After a sync that failed, or damage that was met, nothing is written any more: what the disk has
 *      is not known. All else is undone, and may be tried again.
 */
import type { DiskMemory } from './disk-memory.js'
import { DiskFailure } from './disk-failure.js'
import { DiskLock } from './disk-lock.js'
import { isLackOfRoom } from './lack-of-room.js'
import { takeDiskRoom } from './reserving.js'
import type { DiskHooks, WritableDisk, WritableDriver } from '../formats/writable.js'
import { Scratch, type WritableView } from './write-engine.js'
import { writeStep, zeroStep } from './write-steps.js'
import { areZeros, MIN_ZEROS_BYTES } from './zeros.js'

/** Places in `DiskMemory.counters`. */
const COUNTER = { writes: 0, flushed: 1, begun: 2, failed: 3, generation: 4 } as const

/** How long the disk is held for steps. */
const HOLD_MS = 20
/** Flushes in a row that may be needed until all that was freed is given back. */
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
   * @param view the disk; its driver and all other threads' work on `memory`
   * @param hooks what it tells, and the image's files
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

  get writeErrno(): number {
    return this.failed.errno
  }

  get failure(): string {
    return this.failed.reason
  }

  beginRead(offset: number, length: number): void {
    this.lock.share(offset, length, false)
    this.refresh()
  }

  endRead(): void {
    this.lock.unshare()
  }

  checkFiles(): void {
    if (this.writeErrno !== 0) return
    try {
      for (const file of this.hooks.files ?? []) file.requireWhole?.(true)
    } catch (error) {
      this.failed.judged(error)
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
    let done = 0
    const step = () => {
      done += takeDiskRoom(this.view, this.scratch, offset + done, length - done)
      return done === length
    }
    this.counted(() => this.alone(() => step))
  }

  flush(): void {
    const mine = Atomics.load(this.counters, COUNTER.writes)
    this.lock.takeFlush()
    try {
      // A flush that began after our last write was counted has covered it. Counts may wrap around.
      if (((this.flushedWrites() - mine) | 0) < 0) this.flushOnce()
    } finally {
      this.lock.untakeFlush()
    }
  }

  grow(sizeBytes: number): void {
    this.failed.requireSound()
    this.lock.takeGrowth()
    try {
      const before = this.sizeBytes
      if (sizeBytes <= before) return
      this.driver.checkGrowth(sizeBytes)
      this.growFrom(before, sizeBytes)
    } finally {
      this.lock.untakeGrowth()
    }
  }

  private growFrom(before: number, sizeBytes: number): void {
    this.orAgain(() => this.resize(sizeBytes))
    try {
      // What was there before, of a larger disk or of a layer below, must not show.
      this.zero(before, sizeBytes - before)
      this.flush()
    } catch (error) {
      this.resize(before)
      throw error
    }
    this.whileAlone(() => this.driver.keepSize())
  }

  private resize(sizeBytes: number): void {
    this.lock.takeFlush()
    try {
      this.whileAlone(() => {
        this.begin()
        this.driver.grow(sizeBytes)
        Atomics.add(this.counters, COUNTER.generation, 1)
      })
    } finally {
      this.lock.untakeFlush()
    }
  }

  /** Under the exclusive side; what is thrown is judged. */
  private whileAlone<T>(act: () => T): T {
    this.lock.take()
    try {
      this.refresh()
      return act()
    } catch (error) {
      throw this.failed.judged(error)
    } finally {
      this.lock.untake()
    }
  }

  close(): readonly string[] {
    if (Atomics.load(this.counters, COUNTER.begun) === 0) return []
    this.lock.takeFlush()
    try {
      this.flushAll()
      return this.whileAlone(() => this.driver.close())
    } finally {
      this.lock.untakeFlush()
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
      // What failed half-way has changed something, too.
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

  /** Under the exclusive side. */
  private begin(): void {
    if (Atomics.load(this.counters, COUNTER.begun) !== 0) return
    this.driver.begin()
    Atomics.store(this.counters, COUNTER.begun, 1)
  }

  /** Splits a write into what is zeros, unit by unit, and the rest. */
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

  /** Writes zeros that cover no whole unit; they take no space where the disk reads as zeros already. */
  private writeZeros(source: Buffer, start: number, length: number, offset: number): void {
    const done = this.orAgain(() => this.overwrite(source, start, length, offset))
    if (done < length) this.zeroRange(offset + done, length - done)
  }

  private writeBytes(source: Buffer, start: number, length: number, offset: number): void {
    const done = this.orAgain(() => this.overwrite(source, start, length, offset))
    if (done < length) this.writeAlone(source, start + done, length - done, offset + done)
  }

  /** Writes what can be written in place beside others, from the start; returns how many bytes. */
  private overwrite(source: Buffer, start: number, length: number, offset: number): number {
    // What has to happen before the first write happens alone.
    if (Atomics.load(this.counters, COUNTER.begun) === 0) return 0
    const { driver } = this
    let done = 0
    this.lock.share(offset, length, true)
    try {
      this.refresh()
      for (;;) {
        const bytes = driver.overwritable(offset + done, length - done)
        if (bytes === 0) break
        if (done === 0) driver.mark(offset, length)
        driver.dataStore.write(source, start + done, bytes, driver.placeAt)
        done += bytes
        if (done === length) break
      }
    } catch (error) {
      throw this.failed.judged(error)
    } finally {
      this.lock.unshare()
    }
    return done
  }

  /** Writes in steps that each need the disk for themselves. */
  private writeAlone(source: Buffer, start: number, length: number, offset: number): void {
    this.alone(() => {
      const { driver, view, scratch } = this
      let done = 0
      driver.mark(offset, length)
      return () => {
        done += writeStep(view, scratch, source, start + done, length - done, offset + done)
        return done === length
      }
    })
  }

  private zeroRange(offset: number, length: number): void {
    this.alone(() => {
      const { driver, view, scratch } = this
      let done = 0
      driver.mark(offset, length)
      return () => {
        if (done < length) done += zeroStep(view, scratch, offset + done, length - done)
        return done === length
      }
    })
  }

  /**
   * Runs the steps that `start` returns until one says that it was the last, alone. Between steps the
   * lock is given up where there is something to flush before there is room for the next, and now and
   * then for the others: zeroing may have a whole disk to go through.
   */
  private alone(start: () => () => boolean): void {
    let step: (() => boolean) | undefined
    const started = () => (step ??= start())
    this.orAgain(() => this.stepAlone(started))
  }

  private stepAlone(started: () => () => boolean): void {
    for (let flushes = 0; ; ) {
      let hasRoom = false
      this.lock.take()
      try {
        this.refresh()
        this.failed.requireSound()
        this.begin()
        const step = started()
        const until = performance.now() + HOLD_MS
        do {
          hasRoom = this.driver.hasRoom()
          if (hasRoom && step()) return
        } while (hasRoom && performance.now() < until)
      } catch (error) {
        throw this.failed.judged(error)
      } finally {
        this.lock.untake()
      }
      if (hasRoom) {
        this.lock.giveWay()
        continue
      }
      if (flushes++ > MAX_FLUSHES) throw new Error('flushing makes no room')
      this.lock.takeFlush()
      try {
        this.flushOnce()
      } finally {
        this.lock.untakeFlush()
      }
    }
  }

  /** Runs `act`, and once more with more room where there was too little. */
  private orAgain<T>(act: () => T): T {
    try {
      return act()
    } catch (error) {
      this.makeRoom(error)
      return act()
    }
  }

  /**
   * After a write that found no room: gives back all that was freed, and has the driver look for space from
   * the start. Throws `error` again where that cannot help.
   */
  private makeRoom(error: unknown): void {
    if (!isLackOfRoom(error) || Atomics.load(this.counters, COUNTER.begun) === 0) throw error
    this.lock.takeFlush()
    try {
      this.flushAll()
      this.whileAlone(() => this.driver.lookEverywhere())
    } finally {
      this.lock.untakeFlush()
    }
  }

  /** With the right to flush. Returns whether there is more to flush. */
  private flushOnce(): boolean {
    this.failed.requireSound()
    const upTo = Atomics.load(this.counters, COUNTER.writes)
    const flush = this.whileAlone(() => this.driver.collect())
    try {
      flush.run()
    } catch (error) {
      throw this.failed.judged(error, true)
    }
    this.whileAlone(() => flush.settle())
    Atomics.store(this.counters, COUNTER.flushed, upTo)
    return flush.hasMore
  }

  private flushAll(): void {
    for (let i = 0; i < MAX_FLUSHES; i++) if (!this.flushOnce()) return
  }
}
