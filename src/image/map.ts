/** What `map` says of a disk: the entries of `qemu-img map` (QEMU 7.2), with its rules for joining neighbours. */
import path from 'node:path'
import type { LayerSpec } from '../formats/format.js'
import { formatOf } from '../formats/registry.js'
import { type Mapping, PLAIN_MAPPING } from '../formats/mapping.js'
import type { FileSpec } from '../io/file-spec.js'
import { besideFile, nameOfDisk } from './info.js'
import { filesOf, referenceOf, storeOf } from './layer.js'
import type { Source } from './reading/source.js'
import type { LayerPiece } from './reading/walk-layers.js'
import { SECTOR_BYTES } from '../sector.js'

export interface MapEntry {
  readonly start: number
  readonly length: number
  /** How many layers down the layer is that decides. */
  readonly depth: number
  /** Whether a layer has it allocated, or says that it is zeros. */
  readonly present: boolean
  readonly zero: boolean
  readonly data: boolean
  /** The place in `file`; undefined if there is none, or if the bytes there are compressed or encrypted. */
  readonly offset: number | undefined
  /** The name of the file, relative as the image's was. */
  readonly file: string | undefined
}

/**
 * Yields the entries of a range. Its last one may be empty: QEMU prints that, too. Throws ImageError for damaged tables.
 * @param image the name of the image's file, as the user gave it
 * @param length Infinity for all the rest
 */
export function* mapOf(
  source: Source,
  image: string,
  start: number,
  length: number,
): Generator<MapEntry> {
  let current: MapEntry = { ...NOTHING, start }
  const { sizeBytes } = source
  const end = Math.min(start + length, source.sectorBytes)
  const inside = Math.min(end, sizeBytes)
  const layers = source.layers.map((layer, depth) => new MappedLayer(source, layer, depth))
  nameFiles(layers, image)
  const entries = function* (): Generator<MapEntry> {
    if (start >= inside) return
    for (const piece of source.walk(start, inside - start)) {
      const padding = paddingOf(layers[piece.depth + 1], piece)
      if (padding) yield padding
      const done = padding?.length ?? 0
      yield* (layers[piece.depth] as MappedLayer).entriesOf(piece, done)
    }
    if (end > inside) yield (layers[0] as MappedLayer).padding(inside, end - inside)
  }
  for (const entry of entries()) {
    if (isMergeable(current, entry)) current = { ...current, length: current.length + entry.length }
    else {
      if (current.length > 0) yield current
      current = entry
    }
  }
  yield current
}

const NOTHING = {
  length: 0,
  depth: 0,
  present: false,
  zero: false,
  data: false,
  offset: undefined,
  file: undefined,
}

/** Returns the part of an unallocated piece that rounds the raw file `below`, which ends before it, up to whole sectors. */
function paddingOf(below: MappedLayer | undefined, { offset, length, extent }: LayerPiece) {
  if (extent.kind !== 'parent' || below?.layer.format !== 'raw') return undefined
  const bytes = Math.ceil(below.layer.sizeBytes / SECTOR_BYTES) * SECTOR_BYTES - offset
  return bytes > 0 ? below.padding(offset, Math.min(bytes, length)) : undefined
}

function isMergeable(a: MapEntry, b: MapEntry): boolean {
  return (
    a.length > 0 &&
    a.zero === b.zero &&
    a.data === b.data &&
    a.present === b.present &&
    a.depth === b.depth &&
    a.file === b.file &&
    (a.offset === undefined ? b.offset === undefined : a.offset + a.length === b.offset)
  )
}

/** One layer, as `map` shows it. */
class MappedLayer {
  private readonly names = new Map<number, string>()
  private mapping: Mapping | undefined

  constructor(
    private readonly source: Source,
    readonly layer: LayerSpec,
    private readonly depth: number,
  ) {}

  /** Names the layer's files as the layer itself is named. */
  name(named: string): void {
    const name = nameOfDisk(named, this.layer)
    const folder = `${path.dirname(this.layer.path)}/`
    const shown = name.slice(0, name.lastIndexOf('/') + 1)
    for (const file of filesOf(this.layer)) {
      const isBeside = file.path.startsWith(folder)
      this.names.set(file.fd, isBeside ? shown + file.path.slice(folder.length) : file.path)
    }
    this.names.set(this.layer.fd, name)
  }

  nameOf({ fd }: Pick<FileSpec, 'fd'>): string | undefined {
    return this.names.get(fd)
  }

  /** Returns the entry of zeros with which QEMU rounds a raw file up to whole sectors. */
  padding(start: number, length: number): MapEntry {
    const { depth } = this
    const file = this.nameOf(this.layer)
    return { start, length, depth, present: true, zero: true, data: false, offset: start, file }
  }

  /** @param skipped how many bytes of an unallocated piece to leave out */
  *entriesOf(piece: LayerPiece, skipped: number): Generator<MapEntry> {
    const { offset: start, length, extent, driver } = piece
    const { depth, layer } = this
    this.mapping ??= formatOf(layer).mapping?.(layer, driver, storeOf(layer)) ?? PLAIN_MAPPING
    if (extent.kind === 'packed') {
      yield { ...NOTHING, start, length, depth, present: true, data: true }
    } else if (extent.kind === 'data') {
      yield* this.dataOf(piece, this.mapping)
    } else {
      const isZero = extent.kind === 'zero'
      for (let done = skipped; done < length; ) {
        const kept = this.mapping.keptAt(start + done, length - done, isZero)
        const file = kept.at === undefined ? undefined : this.nameOf(layer.dataFile ?? layer)
        const place = { start: start + done, length: kept.length, offset: kept.at, file }
        yield { ...place, depth, present: isZero, zero: true, data: false }
        done += kept.length
      }
    }
  }

  private *dataOf(piece: LayerPiece, mapping: Mapping): Generator<MapEntry> {
    const { offset: start, length, extent } = piece
    const { depth, source } = this
    const place = source.placeOf(extent)
    if (extent.kind !== 'data' || !place?.isPlain) {
      yield { ...NOTHING, start, length, depth, present: true, data: true }
      return
    }
    const file = this.nameOf(place.file)
    const holes = mapping.holesAt(start)
    for (let done = 0; done < length; ) {
      const offset = extent.at + done
      const run = holes
        ? source.runsOf(extent.store).at(offset, length - done)
        : { isData: true, length: length - done }
      const common = { start: start + done, length: run.length, depth, present: true, offset, file }
      yield { ...common, zero: !run.isData, data: run.isData || holes === 'both' }
      done += run.length
    }
  }
}

/** Gives each layer's file the name that its image has for it, beside the file of that image. */
function nameFiles(layers: readonly MappedLayer[], image: string): void {
  let name = image
  for (const mapped of layers) {
    mapped.name(name)
    const reference = referenceOf(mapped.layer)
    if (reference) name = besideFile(nameOfDisk(name, mapped.layer), reference.name)
  }
}
