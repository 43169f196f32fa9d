import type { Extent, FormatDriver } from '../formats/driver.js'

/** A disk without its first `startOffset` bytes. */
export class ShiftedDriver implements FormatDriver {
  readonly sizeBytes: number
  readonly unitBytes: number

  constructor(
    private readonly driver: FormatDriver,
    private readonly startOffset: number,
  ) {
    this.sizeBytes = driver.sizeBytes - startOffset
    this.unitBytes = driver.unitBytes
  }

  lookup(offset: number, length: number): Extent {
    return this.driver.lookup(this.startOffset + offset, length)
  }
}
