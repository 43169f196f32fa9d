/** A disk divided into cells of one size, with what each consists of: what a picture of it needs. Plain data. */

/** For each cell, by its index. */
export interface DiskMap {
  readonly cellBytes: number
  /** Bytes of the disk with plain data, with compressed data, of zeros that the image says, and from layers below. */
  readonly data: readonly number[]
  readonly compressed: readonly number[]
  readonly zero: readonly number[]
  readonly below: readonly number[]
  /** The newest snapshot that most of the cell is shared with, as its index from 1 on; 0 for none. */
  readonly sharedWith: readonly number[]
}

export type MapKind = 'data' | 'compressed' | 'zero' | 'below'

/** The least size of a cell, in bytes. */
const MIN_CELL_BYTES = 512

export class DiskMapBuilder {
  readonly cellBytes: number
  private readonly bytes: Record<MapKind, Float64Array>
  /** The candidate of each cell, and how far it leads in bytes (the vote of Boyer and Moore). */
  private readonly leader: Uint32Array
  private readonly lead: Float64Array

  constructor(
    private readonly diskBytes: number,
    cells: number,
  ) {
    const each = Math.ceil(diskBytes / cells / MIN_CELL_BYTES) * MIN_CELL_BYTES
    this.cellBytes = Math.max(MIN_CELL_BYTES, each)
    const length = Math.ceil(diskBytes / this.cellBytes)
    const column = () => new Float64Array(length)
    this.bytes = { data: column(), compressed: column(), zero: column(), below: column() }
    this.leader = new Uint32Array(length)
    this.lead = new Float64Array(length)
  }

  /** Adds a part of the disk. What lies past the end of the disk is left out. */
  add(kind: MapKind, offset: number, length: number, sharedWith = 0): void {
    const { cellBytes, leader, lead } = this
    const end = Math.min(offset + length, this.diskBytes)
    const column = this.bytes[kind]
    for (let at = offset; at < end; ) {
      const cell = Math.floor(at / cellBytes)
      const stop = Math.min(end, (cell + 1) * cellBytes)
      const bytes = stop - at
      column[cell] = (column[cell] as number) + bytes
      const leads = lead[cell] as number
      if (leader[cell] === sharedWith) lead[cell] = leads + bytes
      else if (leads >= bytes) lead[cell] = leads - bytes
      else {
        leader[cell] = sharedWith
        lead[cell] = bytes - leads
      }
      at = stop
    }
  }

  finish(): DiskMap {
    const { data, compressed, zero, below } = this.bytes
    return {
      cellBytes: this.cellBytes,
      data: [...data],
      compressed: [...compressed],
      zero: [...zero],
      below: [...below],
      sharedWith: [...this.leader],
    }
  }
}
