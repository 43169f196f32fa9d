/** A piece of a disk: data, zeros or compressed units, with the holes of files taken out. */
import type { Extent } from '../../formats/driver.js'
import { lostAt } from '../reading/salvage.js'
import type { Source } from '../reading/source.js'
import type { LayerPiece, OnLoss } from '../reading/walk-layers.js'

/** A part of the disk with one kind of content. */
export interface Piece {
  readonly offset: number
  readonly length: number
  readonly extent: Exclude<Extent, { kind: 'parent' }>
}

/** The disk that is converted, or that the target stands on. */
export type ConvertedDisk = Pick<
  Source,
  'view' | 'sizeBytes' | 'walk' | 'runsOf' | 'placeOf' | 'read' | 'salvage'
>

const endOf = ({ offset, length }: Piece): number => offset + length

/** How many pieces are looked up ahead. */
const LOOKED_UP = 256

/** Best asked in ascending order: what lies before the pieces that were looked up last has to be looked up again. */
export class PieceCursor {
  private pieces: Piece[] = []
  private next = 0
  /** The part of the disk that `pieces` cover. */
  private from = 0
  private known = 0

  /**
   * @param sizeBytes where to end; past the end of the source's disk all is zeros
   * @param onLoss is told of what cannot be looked up, which then counts as zeros; without it that throws
   */
  constructor(
    private readonly disk: ConvertedDisk,
    private readonly sizeBytes: number,
    private readonly onLoss: OnLoss | undefined,
  ) {}

  /** Returns where the zeros end that begin at `offset`; `offset` itself if there are none. */
  zerosUntil(offset: number): number {
    let end = offset
    for (;;) {
      const piece = this.pieceAt(end)
      if (piece?.extent.kind !== 'zero') return end
      end = endOf(piece)
    }
  }

  /** Returns the pieces that touch a range, whole, in order. */
  within(offset: number, end: number): Piece[] {
    const found: Piece[] = []
    for (let at = offset; at < end; ) {
      const piece = this.pieceAt(at)
      if (!piece) break
      found.push(piece)
      at = endOf(piece)
    }
    return found
  }

  /** Returns the piece at `offset`; undefined at the disk's end. */
  private pieceAt(offset: number): Piece | undefined {
    if (offset >= this.sizeBytes) return undefined
    this.seek(offset)
    for (;;) {
      const piece = this.pieces[this.next]
      if (!piece) this.lookUp()
      else if (endOf(piece) > offset) return piece
      else this.next++
    }
  }

  private seek(offset: number): void {
    if (offset < this.from || offset >= this.known) {
      this.pieces = []
      this.next = 0
      this.known = offset
    }
    while (this.next > 0 && endOf(this.pieces[this.next - 1] as Piece) > offset) this.next--
  }

  private lookUp(): void {
    const { disk } = this
    this.pieces = []
    this.next = 0
    this.from = this.known
    const end = Math.min(disk.sizeBytes, this.sizeBytes)
    if (this.from >= end) {
      const length = this.sizeBytes - this.from
      this.push({ offset: this.from, length, extent: { kind: 'zero', length } })
      return
    }
    try {
      for (const found of disk.walk(this.from, end - this.from, this.onLoss)) {
        this.add(found)
        if (this.pieces.length >= LOOKED_UP) return
      }
    } catch (error) {
      // The part before the damage is used first: so the caller knows how far the disk is whole.
      if (this.pieces.length === 0) throw error
    }
  }

  private add({ offset, length, driver, extent }: LayerPiece): void {
    if (extent.kind === 'parent') {
      this.push({ offset, length, extent: { kind: 'zero', length } })
      return
    }
    if (extent.kind !== 'data' || !this.disk.placeOf(extent)?.isPlain) {
      this.push({ offset, length, extent })
      return
    }
    // The rest of an extent with many holes is looked up again later.
    for (const piece of this.withHoles(offset, extent, lostAt(extent.store, driver))) {
      this.push(piece)
      if (this.pieces.length >= LOOKED_UP) return
    }
  }

  /**
   * Splits data at the holes of their file.
   * @param lostFrom from where on bytes were lost with the end of the file: those are data, and reading them is an error
   */
  private *withHoles(
    offset: number,
    { store, at, length }: Extent & { kind: 'data' },
    lostFrom: number,
  ): Generator<Piece> {
    for (let done = 0; done < length; ) {
      const from = at + done
      const run = this.disk.runsOf(store).at(from, length - done)
      const isHole = !run.isData && from < lostFrom
      const bytes = isHole
        ? Math.min(run.length, lostFrom - from)
        : run.isData
          ? run.length
          : length - done
      const extent: Piece['extent'] = isHole
        ? { kind: 'zero', length: bytes }
        : { kind: 'data', store, at: from, length: bytes }
      yield { offset: offset + done, length: bytes, extent }
      done += bytes
    }
  }

  private push(piece: Piece): void {
    this.pieces.push(piece)
    this.known = endOf(piece)
  }
}

/** Returns the largest unit of the disk's layers: compressed bytes are at most so many, decompressed. */
export function largestUnit({ view }: ConvertedDisk): number {
  let unitBytes = 1
  for (let each: ConvertedDisk['view'] | undefined = view; each; each = each.parent) {
    unitBytes = Math.max(unitBytes, each.driver.unitBytes)
  }
  return unitBytes
}
