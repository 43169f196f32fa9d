/**
 * Finds space at the places of unmarked sectors. Nothing reads it. Whole blocks of the file system in it can become holes,
 * which take no space. What follows the last sector is not part of the image.
 */
import type { Store } from '../../io/store.js'
import type { CowHeader } from './header.js'
import { SECTOR_BYTES } from '../../sector.js'
import { BLOCK_BYTES, DataRanges } from '../check/reclaim.js'

/** A range of bytes of the file. */
export interface Span {
  readonly at: number
  readonly bytes: number
}

/** Finds the space of unmarked sectors that can be given back. Ask in the order of the file. */
export class UnusedSpace {
  private readonly data: DataRanges

  constructor(
    private readonly store: Store,
    private readonly header: CowHeader,
  ) {
    this.data = new DataRanges(store)
  }

  /** Returns the blocks of the unmarked sectors `first` up to `end`, unless they are completely a hole. */
  of(first: number, end: number): { span: Span; dataBytes: number } | undefined {
    const { dataOffset } = this.header
    const { sizeBytes } = this.store
    const from = Math.ceil((dataOffset + first * SECTOR_BYTES) / BLOCK_BYTES) * BLOCK_BYTES
    const last = dataOffset + end * SECTOR_BYTES
    // The block within which the file ends is freed only as a whole.
    const to =
      (last < sizeBytes ? Math.floor : Math.ceil)(Math.min(last, sizeBytes) / BLOCK_BYTES) *
      BLOCK_BYTES
    const dataBytes = this.data.bytesIn(from, to)
    return dataBytes > 0 ? { span: { at: from, bytes: to - from }, dataBytes } : undefined
  }
}
