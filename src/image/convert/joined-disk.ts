/** Several disks, one after the other, as one disk that is converted. Each takes whole sectors, as with qemu-img. */
import type { Extent, FormatDriver, View } from '../../formats/driver.js'
import type { Store } from '../../io/store.js'
import { SECTOR_BYTES } from '../../sector.js'
import type { Source } from '../reading/source.js'
import type { LayerPiece, OnLoss } from '../reading/walk-layers.js'
import { type ConvertedDisk, largestUnit } from './piece-cursor.js'

/** What `convertToNew` and `convertInto` read: one disk or several. */
export type ConvertSource = ConvertedDisk &
  Pick<Source, 'path' | 'files' | 'requireThere' | 'close'>

interface Part {
  readonly source: Source
  readonly offset: number
  readonly end: number
}

export class JoinedDisk implements ConvertSource {
  readonly sizeBytes: number
  /** It only says the largest unit. */
  readonly view: View
  private readonly parts: readonly Part[]
  private readonly byStore = new Map<Store, Source>()
  /** Whose compressed units these are. */
  private readonly byExtent = new WeakMap<Extent, Source>()

  constructor(sources: readonly [Source, ...Source[]]) {
    let end = 0
    this.parts = sources.map(source => {
      const offset = end
      end += Math.ceil(source.sizeBytes / SECTOR_BYTES) * SECTOR_BYTES
      return { source, offset, end }
    })
    this.sizeBytes = end
    const unitBytes = Math.max(...sources.map(largestUnit))
    this.view = { ...sources[0].view, driver: { unitBytes } as FormatDriver, parent: undefined }
  }

  get path(): string {
    return this.parts.map(({ source }) => source.path).join(', ')
  }

  get files() {
    return this.parts.flatMap(({ source }) => source.files)
  }

  close(): void {
    for (const { source } of this.parts) source.close()
  }

  requireThere(): void {
    for (const { source } of this.parts) source.requireThere()
  }

  *walk(offset = 0, length = this.sizeBytes - offset, onLoss?: OnLoss): Generator<LayerPiece> {
    for (const { source, offset: start, from, bytes } of this.within(offset, length)) {
      const shifted = onLoss && shiftedLoss(onLoss, start)
      const inside = Math.max(0, Math.min(bytes, source.sizeBytes - from))
      for (const piece of source.walk(from, inside, shifted)) {
        const { extent } = piece
        if (extent.kind === 'data') this.byStore.set(extent.store, source)
        else this.byExtent.set(extent, source)
        yield { ...piece, offset: start + piece.offset }
      }
      if (inside === bytes) continue
      const extent = { kind: 'zero', length: bytes - inside } as const
      const { driver } = source.view
      yield { offset: start + from + inside, length: extent.length, depth: 0, driver, extent }
    }
  }

  runsOf(store: Store) {
    return this.sourceOf(store).runsOf(store)
  }

  placeOf(extent: Extent) {
    if (extent.kind === 'data') return this.sourceOf(extent.store).placeOf(extent)
    return this.byExtent.get(extent)?.placeOf(extent)
  }

  read(target: Buffer, start: number, length: number, offset: number): void {
    for (const { source, offset: at, from, bytes } of this.within(offset, length)) {
      source.read(target, start + at + from - offset, bytes, from)
    }
  }

  salvage(target: Buffer, start: number, length: number, offset: number, onLoss: OnLoss): void {
    for (const { source, offset: at, from, bytes } of this.within(offset, length)) {
      const shifted = shiftedLoss(onLoss, at)
      source.salvage(target, start + at + from - offset, bytes, from, shifted)
    }
  }

  private sourceOf(store: Store): Source {
    return this.byStore.get(store) as Source
  }

  /** Yields what of each disk is in a range: `from` is the place on that disk. */
  private *within(offset: number, length: number) {
    for (const { source, offset: start, end } of this.parts) {
      const from = Math.max(offset, start)
      const to = Math.min(offset + length, end)
      if (to > from) yield { source, offset: start, from: from - start, bytes: to - from }
    }
  }
}

const shiftedLoss =
  (onLoss: OnLoss, by: number): OnLoss =>
  (offset, length, reason) =>
    onLoss(by + offset, length, reason)
