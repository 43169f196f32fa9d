/** Fills the disk of an image that exists. */
import type { ImageDisk } from '../open-image.js'
import type { Sink } from './sink.js'

/** Zeros are given back in units of so many bytes. */
const UNIT_BYTES = 64 * 1024

export class DiskSink implements Sink {
  readonly unitBytes = UNIT_BYTES
  readonly storesZeros = true

  constructor(private readonly disk: Pick<ImageDisk, 'write' | 'zero'>) {}

  write(bytes: Buffer, offset: number): void {
    this.disk.write(bytes, offset)
  }

  pack(): void {
    throw new TypeError('an existing image takes nothing compressed')
  }

  zero(offset: number, length: number): void {
    this.disk.zero(offset, length)
  }
}
