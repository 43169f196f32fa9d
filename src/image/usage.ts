/**
 * Tells where the space of an image and of the layers below it went, without reading data: what each file takes, what each layer
 * has of the disk, and how much of that the disk still reads from it.
 */
import { DiskMapBuilder, type DiskMap } from '../formats/disk-map.js'
import type { FormatDriver } from '../formats/driver.js'
import type { LayerSpec } from '../formats/format.js'
import { formatOf } from '../formats/registry.js'
import type { Reach, SpaceUsage, UsageOptions } from '../formats/usage.js'
import type { Chain } from './opening/chain.js'
import { allocatedNow, filesOf, storeOf } from './layer.js'
import { lookupAt } from './reading/engine.js'
import { isDamage } from './reading/walk-layers.js'
import { type Source, SourceImage } from './reading/source.js'

/** Plain data, with which a thread can tell the usage. The files stay open meanwhile. */
export interface UsageSetup {
  readonly chain: Chain
  /** The snapshots whose common figures are wanted. */
  readonly chosen: UsageOptions['chosen']
  /** How many cells a map of the disk has; 0 for no map. */
  readonly mapCells: number
}

export interface LayerUsage
  extends Partial<Pick<SpaceUsage, 'space' | 'compression' | 'unitBytes'>> {
  readonly path: string
  readonly format: string
  /** The size of its files, and the space that they take on their file systems, in bytes. */
  readonly fileBytes: number
  readonly allocatedBytes: number
  /** The size of all tables that the disk can have, in bytes. */
  readonly tableBytes: number
  /** Bytes of the disk for which the layer has data, and those that the disk reads from it. */
  readonly heldBytes: number
  readonly usedBytes: number
}

/** Plain data: it can be sent as JSON. */
export interface ImageUsage {
  readonly diskBytes: number
  /** The image first, then what it stands on. */
  readonly layers: readonly LayerUsage[]
  readonly disk?: Reach | undefined
  readonly snapshots: SpaceUsage['snapshots']
  readonly chosen?: Reach | undefined
  readonly map?: DiskMap | undefined
  readonly problems: readonly string[]
}

interface Options {
  readonly progress?: (part: number) => void
}

/** Counts the bytes that the disk reads from each layer, and finds where layers below show in the map. */
interface Shares {
  readonly usedBytes: readonly number[]
  readonly map: DiskMap | undefined
}

/** Throws ImageError where damage leaves nothing to tell, and SystemError. */
export async function usageOf(setup: UsageSetup, { progress }: Options): Promise<ImageUsage> {
  const { chain, chosen, mapCells } = setup
  const source = SourceImage.of(chain).disk()
  const problems: string[] = []
  const { layers } = source
  const isAlone = layers.length === 1
  const told: (SpaceUsage | undefined)[] = []
  for (const [depth, layer] of layers.entries()) {
    const usage = formatOf(layer).usage
    const image = { store: storeOf(layer), spec: layer.spec, storeOf }
    const options = {
      chosen: depth === 0 ? chosen : [],
      mapCells: depth === 0 ? mapCells : 0,
      progress: (part: number) => progress?.((depth + part) / (layers.length + 1)),
    }
    const space = usage && (await usage.load())(image, options)
    told.push(space)
    for (const problem of space?.problems ?? []) problems.push(problem)
  }
  const [top] = told
  const held = heldByLayers(source, told, problems)
  const needsWalk = !isAlone || (mapCells > 0 && !top?.map)
  const shares = needsWalk
    ? sharesOf(source, mapCells, problems, part =>
        progress?.((layers.length + part) / (layers.length + 1)),
      )
    : undefined
  return {
    diskBytes: source.sizeBytes,
    layers: layers.map((layer, depth) => ({
      path: layer.path,
      format: layer.format,
      ...sizesOf(layer),
      tableBytes: formatOf(layer).tableBytes(layer),
      heldBytes: held[depth] as number,
      usedBytes: shares?.usedBytes[depth] ?? (held[depth] as number),
      ...(told[depth] && {
        unitBytes: told[depth].unitBytes,
        space: told[depth].space,
        compression: told[depth].compression,
      }),
    })),
    disk: top?.disk,
    snapshots: top?.snapshots ?? [],
    chosen: top?.chosen,
    map: mapOf(top?.map, shares?.map),
    problems: [...new Set(problems)],
  }
}

/** The map of the image itself knows what snapshots share; that of the walk knows the layers below. */
const mapOf = (own: DiskMap | undefined, walked: DiskMap | undefined): DiskMap | undefined =>
  own && walked ? { ...own, below: walked.below } : (own ?? walked)

function sizesOf(layer: LayerSpec) {
  const files = filesOf(layer)
  return {
    fileBytes: files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0),
    allocatedBytes: files.reduce((sum, file) => sum + allocatedNow(file), 0),
  }
}

/** Returns how much of the disk each layer has, in bytes. */
function heldByLayers(
  source: Source,
  told: readonly (SpaceUsage | undefined)[],
  problems: string[],
): number[] {
  const held: number[] = []
  let view: typeof source.view | undefined = source.view
  for (const space of told) {
    if (!view) break
    held.push(space?.heldBytes ?? dataBytes(source, view.driver, problems))
    view = view.parent
  }
  return held
}

/** Returns how many bytes a layer has data for; holes of its files are none. */
function dataBytes(source: Source, driver: FormatDriver, problems: string[]): number {
  let bytes = 0
  for (let at = 0; at < driver.sizeBytes; ) {
    let length = Math.max(driver.unitBytes, MIN_STEP_BYTES)
    try {
      const extent = lookupAt(driver, at, driver.sizeBytes - at)
      length = extent.length
      if (extent.kind === 'packed') bytes += length
      else if (extent.kind === 'data') {
        const isPlain = source.placeOf(extent)?.isPlain === true
        bytes += isPlain ? presentBytes(source, extent.store, extent.at, length) : length
      }
    } catch (error) {
      if (!isDamage(error)) throw error
      problems.push(error.message)
    }
    at += length
  }
  return bytes
}

/** The least that is passed over where a table is damaged, in bytes. */
const MIN_STEP_BYTES = 4096

function presentBytes(
  source: Source,
  store: Parameters<Source['runsOf']>[0],
  start: number,
  length: number,
): number {
  const runs = source.runsOf(store)
  let bytes = 0
  for (let done = 0; done < length; ) {
    const run = runs.at(start + done, length - done)
    if (run.isData) bytes += run.length
    done += run.length
  }
  return bytes
}

/** Walks over the disk, and says how much of it each layer decides with data. */
function sharesOf(
  source: Source,
  mapCells: number,
  problems: string[],
  progress: (part: number) => void,
): Shares {
  const { sizeBytes } = source
  const usedBytes = source.layers.map(() => 0)
  const map = mapCells > 0 ? new DiskMapBuilder(sizeBytes, mapCells) : undefined
  const onLoss = (_: number, __: number, reason: Error) => {
    problems.push(reason.message)
  }
  for (const { offset, length, depth, kind, isCompressed } of source.parts(0, sizeBytes, onLoss)) {
    progress(offset / sizeBytes)
    if (kind === 'zero') map?.add('zero', offset, length)
    if (kind !== 'data') continue
    usedBytes[depth]! += length
    const own = isCompressed ? 'compressed' : 'data'
    map?.add(depth > 0 ? 'below' : own, offset, length)
  }
  return { usedBytes, map: map?.finish() }
}
