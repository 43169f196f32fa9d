/** Writes a raw image: every byte in place. */
import { orEndWriting } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import { BaseWriter } from '../base-writer.js'
import type { Extent } from '../driver.js'
import type { Flush, InPlace, Reservation, WritableDriver } from '../writable.js'

/** The block size for punching: file systems punch only whole blocks. */
const BLOCK_BYTES = 4096

export class RawWriter extends BaseWriter implements WritableDriver {
  readonly unitBytes = 1
  readonly fillBytes: number = 0
  readonly zeroUnitBytes = BLOCK_BYTES
  /** False: a program that writes zeros to a raw image may want to allocate their space. */
  readonly detectsZeros = false
  sizeBytes: number

  constructor(protected readonly dataStore: WritableStore) {
    super('raw', dataStore.path)
    this.sizeBytes = dataStore.sizeBytes
  }

  lookup(offset: number, length: number): Extent {
    return { kind: 'data', length, store: this.dataStore, at: offset }
  }

  overwritable(offset: number, length: number): InPlace | undefined {
    return { store: this.dataStore, at: offset, length }
  }

  begin(): void {}

  hasCapacity(): boolean {
    return true
  }

  reserve(_offset: number, _length: number): Reservation {
    throw new TypeError('a raw image has nothing to reserve')
  }

  link(_reservation: Reservation): void {}

  cancel(): void {}

  zeroUnits(offset: number, length: number): number {
    return this.dataStore.punch(offset, length) ? length : 0
  }

  collect(): Flush {
    return {
      run: () => orEndWriting(() => this.dataStore.sync()),
      settle: () => {},
      hasMore: false,
    }
  }

  override refresh(): void {
    this.sizeBytes = this.dataStore.sizeBytes
  }

  override checkGrowth(): void {}

  override grow(sizeBytes: number): void {
    this.dataStore.truncate(sizeBytes)
    this.refresh()
  }
}
