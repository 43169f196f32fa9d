/** The bound on what may be written to the scratch copies of a mount, all together. */
import { constants } from 'node:os'
import { SystemError } from '../../errors.js'
import type { Flush, Reservation, WritableDriver } from '../../formats/writable.js'
import { PassingDriver } from './passing-driver.js'

const { ENOSPC } = constants.errno

/** The most bytes that one step makes zero: all of them are looked up before. A multiple of every unit. */
const STEP_BYTES = 2 ** 25

/** Counts bytes in memory that all threads share. */
export class ScratchSpace {
  private readonly used: BigInt64Array

  constructor(
    readonly limitBytes: number,
    readonly shared = new SharedArrayBuffer(8),
  ) {
    this.used = new BigInt64Array(shared)
  }

  /** Takes `bytes`. Returns false, and takes nothing, if there are fewer left. */
  take(bytes: number): boolean {
    const before = Atomics.add(this.used, 0, BigInt(bytes))
    if (before + BigInt(bytes) <= BigInt(this.limitBytes)) return true
    this.giveBack(bytes)
    return false
  }

  /** Counts `bytes` that are there already, even if they are too many. */
  count(bytes: number): void {
    Atomics.add(this.used, 0, BigInt(bytes))
  }

  giveBack(bytes: number): void {
    Atomics.sub(this.used, 0, BigInt(bytes))
  }
}

/**
 * A driver that takes space for each piece that it allocates. What becomes zero is given back by the flush that frees it: until
 * then its place is not used again.
 */
export class BoundedDriver extends PassingDriver {
  /** How much has become zero since the last flush, in bytes; all threads of the disk add to it. */
  private readonly freed: BigInt64Array

  /** @param freed 8 bytes for each disk, which its threads share */
  constructor(
    driver: WritableDriver,
    private readonly space: ScratchSpace,
    freed: SharedArrayBuffer,
    private readonly path: string,
  ) {
    super(driver)
    this.freed = new BigInt64Array(freed)
  }

  override reserve(offset: number, length: number): Reservation {
    const reservation = this.driver.reserve(offset, length)
    if (this.space.take(this.bytesOf(reservation))) return reservation
    this.driver.cancel(reservation)
    throw new SystemError('write', ENOSPC, this.path)
  }

  override cancel(reservation: Reservation): void {
    this.space.giveBack(this.bytesOf(reservation))
    this.driver.cancel(reservation)
  }

  override zeroUnits(offset: number, length: number): number {
    const most = Math.min(length, STEP_BYTES)
    const pieces = this.allocatedIn(offset, most)
    const done = this.driver.zeroUnits(offset, most)
    let bytes = 0
    for (const { at, length } of pieces) bytes += Math.max(0, Math.min(length, offset + done - at))
    Atomics.add(this.freed, 0, BigInt(bytes))
    return done
  }

  override collect(): Flush {
    const flush = this.driver.collect()
    const freed = Atomics.load(this.freed, 0)
    return {
      run: () => flush.run(),
      settle: () => {
        flush.settle()
        Atomics.sub(this.freed, 0, freed)
        this.space.giveBack(Number(freed))
      },
      get hasMore() {
        return flush.hasMore
      },
    }
  }

  /** Returns how much of the disk is in the reservation: its last unit may end past the disk. */
  private bytesOf({ offset, length }: Reservation): number {
    return Math.min(length, this.sizeBytes - offset)
  }

  /** Returns the allocated pieces of a range. */
  private allocatedIn(offset: number, length: number): { at: number; length: number }[] {
    const found: { at: number; length: number }[] = []
    const end = Math.min(offset + length, this.sizeBytes)
    for (let at = offset; at < end; ) {
      const extent = this.driver.lookup(at, end - at)
      if (extent.kind === 'data') found.push({ at, length: extent.length })
      at += extent.length
    }
    return found
  }
}
