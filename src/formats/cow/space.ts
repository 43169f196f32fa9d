/**
 * Finds space at the places of unmarked sectors. Nothing reads it. Whole blocks of the file system in it can become holes,
 * which take no space. What follows the last sector is not part of the image.
 */
import type { Store } from '../../io/store.js'
import type { CowHeader } from './header.js'
import { SECTOR_BYTES } from '../../sector.js'

/** The block size of most file systems; a smaller hole frees nothing. */
const BLOCK_BYTES = 4096

/** A range of bytes of the file. */
export interface Span {
  readonly at: number
  readonly bytes: number
}

/** Finds the space of unmarked sectors that can be given back. Ask in the order of the file. */
export class UnusedSpace {
  /** The last range of data that was found in the file, from `start` up to `end`. */
  private start = 0
  private end = 0
  private isData = false

  constructor(
    private readonly store: Store,
    private readonly header: CowHeader,
  ) {}

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
    const dataBytes = this.dataIn(from, to)
    return dataBytes > 0 ? { span: { at: from, bytes: to - from }, dataBytes } : undefined
  }

  private dataIn(from: number, to: number): number {
    let found = 0
    for (let at = from; at < to; at = this.end) {
      if (at < this.start || at >= this.end) this.look(at)
      if (this.isData) found += Math.min(to, this.end) - at
    }
    return found
  }

  private look(at: number): void {
    const data = this.store.nextData(at)
    this.start = at
    this.isData = data === at
    if (this.isData) this.end = Math.max(at + 1, this.store.nextHole(at))
    else this.end = data < 0 ? Number.POSITIVE_INFINITY : data
  }
}
