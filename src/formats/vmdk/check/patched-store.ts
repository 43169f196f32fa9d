/** A file as it will be after some words are written, to check it before that. */
import type { Store } from '../../../io/store.js'

const WORD_BYTES = 4

export interface Patch {
  /** The place in bytes, a multiple of 4. */
  readonly at: number
  /** The word, 32 bits. */
  readonly value: number
}

export class PatchedStore implements Store {
  private readonly patches: readonly Patch[]

  constructor(
    private readonly inner: Store,
    patches: readonly Patch[],
  ) {
    this.patches = [...patches].sort((a, b) => a.at - b.at)
  }

  get path(): string {
    return this.inner.path
  }

  get sizeBytes(): number {
    return this.inner.sizeBytes
  }

  /** Reads whole words. */
  read(target: Buffer, start: number, length: number, at: number): number {
    const got = this.inner.read(target, start, length, at)
    for (let i = this.firstFrom(at); i < this.patches.length; i++) {
      const patch = this.patches[i] as Patch
      if (patch.at + WORD_BYTES > at + got) break
      target.writeUInt32LE(patch.value, start + patch.at - at)
    }
    return got
  }

  /** A word that is written into a hole turns it into data. */
  nextData(at: number): number {
    const next = this.inner.nextData(at)
    const patch = this.patches[this.firstFrom(at)]
    return patch && (next < 0 || patch.at < next) ? patch.at : next
  }

  nextHole(at: number): number {
    return this.inner.nextHole(at)
  }

  /** Returns the first patch that is not before `at`. */
  private firstFrom(at: number): number {
    let low = 0
    let high = this.patches.length
    while (low < high) {
      const middle = Math.floor((low + high) / 2)
      if ((this.patches[middle] as Patch).at < at) low = middle + 1
      else high = middle
    }
    return low
  }
}
