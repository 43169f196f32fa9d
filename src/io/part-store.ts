import { ImageError } from '../errors.js'
import type { Store, WritableStore } from './store.js'

/** A part of a larger file, as a file of its own. Nothing past its end is read. It is only read. */
export class PartStore implements WritableStore {
  constructor(
    private readonly whole: Store,
    readonly path: string,
    private readonly startAt: number,
    readonly sizeBytes: number,
  ) {}

  read(target: Buffer, start: number, length: number, at: number): number {
    const inside = Math.min(length, this.sizeBytes - at)
    return inside > 0 ? this.whole.read(target, start, inside, this.startAt + at) : 0
  }

  nextData(at: number): number {
    if (at >= this.sizeBytes) return -1
    const found = this.whole.nextData(this.startAt + at) - this.startAt
    return found >= at && found < this.sizeBytes ? found : -1
  }

  nextHole(at: number): number {
    return Math.min(this.whole.nextHole(this.startAt + at) - this.startAt, this.sizeBytes)
  }

  write(): never {
    return this.refuse()
  }

  sync(): never {
    return this.refuse()
  }

  punch(): never {
    return this.refuse()
  }

  truncate(): never {
    return this.refuse()
  }

  private refuse(): never {
    throw new ImageError('READ_ONLY', 'it is a part of a file that is only read', {
      path: this.path,
    })
  }
}
