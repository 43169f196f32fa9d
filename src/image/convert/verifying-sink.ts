/** Takes what differs from a target that was made before: anything at all is an error. */
import { ImageError } from '../../errors.js'
import type { Source } from '../reading/source.js'
import type { Sink } from './sink.js'

const UNIT_BYTES = 64 * 1024

export class VerifyingSink implements Sink {
  readonly unitBytes = UNIT_BYTES
  readonly storesZeros = false

  constructor(private readonly target: Pick<Source, 'read' | 'path'>) {}

  write(bytes: Buffer, offset: number): void {
    this.compare(bytes, offset)
  }

  pack(): void {
    throw new TypeError('nothing is compressed to be compared')
  }

  zero(offset: number, length: number): void {
    this.compare(Buffer.alloc(length), offset)
  }

  private compare(wanted: Buffer, offset: number): void {
    const found = Buffer.alloc(wanted.length)
    this.target.read(found, 0, found.length, offset)
    const at = wanted.findIndex((byte, i) => byte !== found[i])
    const what = `its byte ${offset + Math.max(at, 0)} differs from the source's`
    throw new ImageError('CORRUPT', what, { path: this.target.path, hint: 'do not use it' })
  }
}
