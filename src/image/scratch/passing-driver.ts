/** A driver that passes everything on to another one. The drivers that bound or guard a scratch copy override parts of it. */
import type { Extent } from '../../formats/driver.js'
import type {
  FirstChange,
  Flush,
  InPlace,
  Reservation,
  WritableDriver,
} from '../../formats/writable.js'

export abstract class PassingDriver implements WritableDriver {
  constructor(protected readonly driver: WritableDriver) {}

  get sizeBytes(): number {
    return this.driver.sizeBytes
  }

  get unitBytes(): number {
    return this.driver.unitBytes
  }

  get fillBytes(): number {
    return this.driver.fillBytes
  }

  get zeroUnitBytes(): number {
    return this.driver.zeroUnitBytes
  }

  get detectsZeros(): boolean {
    return this.driver.detectsZeros
  }

  lookup(offset: number, length: number): Extent {
    return this.driver.lookup(offset, length)
  }

  overwritable(offset: number, length: number): InPlace | undefined {
    return this.driver.overwritable(offset, length)
  }

  reserve(offset: number, length: number): Reservation {
    return this.driver.reserve(offset, length)
  }

  link(reservation: Reservation): void {
    this.driver.link(reservation)
  }

  cancel(reservation: Reservation): void {
    this.driver.cancel(reservation)
  }

  zeroUnits(offset: number, length: number): number {
    return this.driver.zeroUnits(offset, length)
  }

  collect(): Flush {
    return this.driver.collect()
  }

  begin(first?: FirstChange): void {
    this.driver.begin(first)
  }

  hasCapacity(): boolean {
    return this.driver.hasCapacity()
  }

  mark(offset: number, length: number): void {
    this.driver.mark(offset, length)
  }

  lookEverywhere(): void {
    this.driver.lookEverywhere()
  }

  refresh(): void {
    this.driver.refresh()
  }

  checkGrowth(sizeBytes: number): void {
    this.driver.checkGrowth(sizeBytes)
  }

  grow(sizeBytes: number): void {
    this.driver.grow(sizeBytes)
  }

  keepSize(): void {
    this.driver.keepSize()
  }

  close(): readonly string[] {
    return this.driver.close()
  }
}
