/** The parts that all kinds of new extents share. */
import { ImageError } from '../../../errors.js'
import type { WritableStore } from '../../../io/store.js'
import type { Place } from '../../creating.js'
import { MAX_FILE_BYTES } from '../layout.js'

/** A new extent; places are in bytes of its own part of the disk. See ImageBuilder. */
export interface NewExtent {
  readonly unitBytes: number
  place(offset: number, length: number): readonly Place[]
  pack(offset: number, packed: Buffer): void
  zero(offset: number, length: number): void
  finish(): void
}

/** Throws ImageError if the entries of tables cannot name what lies before `endAt`: they count sectors in 32 bits. */
export function requireReach(store: WritableStore, endAt: number): void {
  if (endAt <= MAX_FILE_BYTES) return
  throw new ImageError(
    'REFUSED',
    'the file would become larger than 2 TiB, which vmdk cannot hold',
    {
      path: store.path,
      hint: 'use subformat=twoGbMaxExtentSparse or monolithicFlat',
    },
  )
}

export class FlatExtent implements NewExtent {
  readonly unitBytes = 512

  constructor(
    private readonly store: WritableStore,
    private readonly sizeBytes: number,
  ) {}

  place(offset: number, length: number): readonly Place[] {
    return [{ store: this.store, at: offset, length }]
  }

  pack(): void {
    throw new TypeError('flat extents have nothing compressed')
  }

  zero(): void {}

  finish(): void {
    this.store.truncate(this.sizeBytes)
  }
}
