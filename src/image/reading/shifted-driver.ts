import type { Extent, FormatDriver } from '../../formats/driver.js'

/** A disk without its first `startOffset` bytes, and at most `maxBytes` of it. */
export class ShiftedDriver implements FormatDriver {
  readonly sizeBytes: number
  readonly unitBytes: number

  constructor(
    private readonly driver: FormatDriver,
    private readonly startOffset: number,
    maxBytes = Number.POSITIVE_INFINITY,
  ) {
    this.sizeBytes = Math.max(0, Math.min(driver.sizeBytes - startOffset, maxBytes))
    this.unitBytes = driver.unitBytes
  }

  lookup(offset: number, length: number): Extent {
    return this.driver.lookup(this.startOffset + offset, length)
  }
}
