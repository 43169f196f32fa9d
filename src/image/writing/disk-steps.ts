/** Work on a range of the disk in steps that each need the disk alone, with what is done so far. */
import type { FirstChange } from '../../formats/writable.js'
import type { Scratch, WritableView } from './write-engine.js'
import { ownStep, reserveStep, writeStep, zeroStep } from './write-steps.js'
import { atOffset } from '../../errors.js'

export abstract class DiskSteps implements FirstChange {
  readonly isZeroing: boolean = false
  private done = 0
  private hasBegun = false

  /** @param length in bytes, like `offset` */
  constructor(
    protected readonly view: WritableView,
    protected readonly scratch: Scratch,
    readonly offset: number,
    private readonly length: number,
  ) {}

  /** Tells the driver that the range is about to change. Call it before each step: only the first call counts. */
  begin(): void {
    if (this.hasBegun) return
    this.announce(this.offset, this.length)
    this.hasBegun = true
  }

  /** Makes one step. Returns whether the work is done. After an error the same step can be made again. */
  next(): boolean {
    const { offset, length, done } = this
    try {
      if (done < length) this.done += this.step(offset + done, length - done, done)
    } catch (error) {
      throw atOffset(error, offset + done)
    }
    return this.done === length
  }

  protected announce(offset: number, length: number): void {
    this.view.driver.mark(offset, length)
  }

  /** Works on the first bytes of a range, the rest of the whole one. Returns how many bytes. `done` were before. */
  protected abstract step(offset: number, length: number, done: number): number
}

/** Writes the bytes from `start` of `source`. */
export class WriteSteps extends DiskSteps {
  constructor(
    view: WritableView,
    scratch: Scratch,
    private readonly source: Buffer,
    private readonly start: number,
    length: number,
    offset: number,
  ) {
    super(view, scratch, offset, length)
  }

  protected override step(offset: number, length: number, done: number): number {
    const { view, scratch, source, start } = this
    return writeStep(view, scratch, source, start + done, length, offset)
  }
}

/** Makes the range read as zeros. */
export class ZeroSteps extends DiskSteps {
  override readonly isZeroing = true

  protected override step(offset: number, length: number): number {
    return zeroStep(this.view, this.scratch, offset, length)
  }
}

/** Reserves space for the range, and leaves its bytes as they are. */
export class ReserveSteps extends DiskSteps {
  protected override announce(): void {}

  protected override step(offset: number, length: number): number {
    return reserveStep(this.view, this.scratch, offset, length)
  }
}

/** Takes the range over from the layers below, as it reads. */
export class OwnSteps extends DiskSteps {
  constructor(
    view: WritableView,
    scratch: Scratch,
    offset: number,
    length: number,
    private readonly areZeros: boolean,
  ) {
    super(view, scratch, offset, length)
  }

  protected override announce(): void {}

  protected override step(offset: number, length: number): number {
    return ownStep(this.view, this.scratch, offset, length, this.areZeros)
  }
}
