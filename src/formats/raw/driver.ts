/** A raw image: the file's bytes are the disk's. */
import type { Store } from '../../io/store.js'
import type { Extent, FormatDriver } from '../driver.js'

export class RawDriver implements FormatDriver {
  readonly unitBytes = 1
  readonly sizeBytes: number

  constructor(private readonly store: Store) {
    this.sizeBytes = store.sizeBytes
  }

  /** Everything is data; the code for holes finds the holes of the file. */
  lookup(offset: number, length: number): Extent {
    return { kind: 'data', length, store: this.store, at: offset }
  }
}
