/**
 * Space of the file that the places of unmarked sectors take. Nobody reads it, and it can be given back as far
 * as it fills blocks of the file system: as holes, which take none. What follows the last sector is no part of
 * the image.
 */
import type { Store } from '../../io/store.js'
import { type CowHeader, SECTOR_BYTES } from './header.js'

/** Of most file systems; a hole of less frees nothing. */
const BLOCK_BYTES = 4096

/** Where bytes lie in the file. */
export interface Span {
  readonly at: number
  readonly bytes: number
}

/** Finds what of unmarked sectors can be given back; asked from the file's beginning to its end. */
export class UnusedSpace {
  /** What the file has from `start` up to `end`: the last that was looked for. */
  private start = 0
  private end = 0
  private isData = false

  constructor(
    private readonly store: Store,
    private readonly header: CowHeader,
  ) {}

  /** The blocks of the sectors `first` up to `end`, none of which is marked, if they are no hole as a whole. */
  of(first: number, end: number): { span: Span; dataBytes: number } | undefined {
    const { dataOffset } = this.header
    const { sizeBytes } = this.store
    const from = Math.ceil((dataOffset + first * SECTOR_BYTES) / BLOCK_BYTES) * BLOCK_BYTES
    const last = dataOffset + end * SECTOR_BYTES
    // The block that the file ends within is freed only as a whole.
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
