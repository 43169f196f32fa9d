/**
 * Chooses the places of new refcount blocks and of a new refcount table. They are appended if the file can grow and no table
 * points there. Otherwise they take clusters inside the file that nothing uses.
 */
import { ImageError } from '../../../errors.js'
import type { WritableStore } from '../../../io/store.js'
import type { Census } from '../check/census.js'
import { lowestDangling } from './dangling.js'
import { FreeClusters, grow } from './free-clusters.js'
import { MAX_BLOCKS, type Survey, tooLarge } from './survey.js'

/** Clusters in the file that hold zeros, and to which nothing points yet. */
export class RefcountPlaces {
  private readonly sorted: Float64Array

  constructor(
    /** The clusters for refcount blocks, by the number of the block. */
    readonly blocks: ReadonlyMap<number, number>,
    /** The first cluster for a new table. */
    readonly table: number,
    /** The clusters of the new table; 0 if the old one stays. */
    readonly tableClusters: number,
  ) {
    const tables = Array.from({ length: tableClusters }, (_, i) => table + i)
    this.sorted = Float64Array.from([...blocks.values(), ...tables]).sort()
  }

  /** The first cluster after all of them. */
  get end(): number {
    return (this.sorted.at(-1) ?? -1) + 1
  }

  /** Reports whether one of them lies from `first` on, and before `end`. */
  takesFrom(first: number, end: number): boolean {
    const { sorted } = this
    let low = 0
    let high = sorted.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if ((sorted[middle] as number) < first) low = middle + 1
      else high = middle
    }
    return low < sorted.length && (sorted[low] as number) < end
  }
}

/**
 * Takes the space for all missing blocks. Throws ImageError if there is none; then nothing that the image uses has changed,
 * and the file is as long as before.
 *
 * @param isKnown whether the tables name all clusters in use (see FreeClusters)
 */
export function placeRefcounts(
  store: WritableStore,
  survey: Survey,
  isKnown: boolean,
): RefcountPlaces {
  const { image } = survey.census
  const appended = placesAtEnd(survey)
  // Even if nothing is appended, a file that ends within a cluster gets the rest of that cluster.
  const end = Math.max(appended.end, survey.end)
  const isClear = lowestDangling(survey.census) >= end
  if (isClear && grow(store, end * image.clusterBytes)) return appended
  const inside = placesInside(survey, new FreeClusters(store, survey.census, isKnown))
  if (inside) return inside
  throw isClear ? noSpace(store.path) : isDangling(store.path)
}

/**
 * Takes whole clusters in a row for a table of `bytes` bytes. Returns the first one; undefined if there is no space. Nothing
 * that the image uses changes.
 *
 * @param census a census that has run
 * @param isKnown whether the tables name all clusters in use (see FreeClusters)
 */
export function allocateRow(
  store: WritableStore,
  census: Census,
  bytes: number,
  isKnown: boolean,
): number | undefined {
  const { clusters, clusterBytes } = census.image
  const row = Math.ceil(bytes / clusterBytes)
  // Skip one cluster: tables may end in the cluster after the file (Qcow2Structure.isInFile).
  const start = clusters + 1
  const isClear = lowestDangling(census) >= start + row
  if (isClear && grow(store, (start + row) * clusterBytes)) return start
  return new FreeClusters(store, census, isKnown).takeRow(row)
}

/** Returns what would be appended. The new clusters are counted, too: that may need more blocks, and these a longer table. */
function placesAtEnd(survey: Survey): RefcountPlaces {
  const { image, blocks } = survey.census
  const start = survey.end
  const missing = missingBlocks(survey)
  let end = start
  let tableClusters = 0
  for (;;) {
    const last = Math.floor((end - 1) / blocks.perBlock)
    for (let b = Math.floor(start / blocks.perBlock); end > start && b <= last; b++) {
      if (!survey.isSound[b] && b > (missing.at(-1) ?? -1)) missing.push(b)
    }
    const entries = Math.max(blocks.entries, (missing.at(-1) ?? 0) + 1)
    if (entries > MAX_BLOCKS) throw tooLarge(image)
    if (!survey.isTableSound || entries > blocks.entries) {
      tableClusters = Math.ceil((entries * 8) / image.clusterBytes)
    }
    const needed = start + missing.length + tableClusters
    if (needed === end) break
    end = needed
  }
  const places = new Map(missing.map((block, i) => [block, start + i] as const))
  return new RefcountPlaces(places, start + missing.length, tableClusters)
}

/** Returns undefined if there are not enough free clusters. */
function placesInside(survey: Survey, free: FreeClusters): RefcountPlaces | undefined {
  const { image, blocks } = survey.census
  const missing = missingBlocks(survey)
  const needed = (missing.at(-1) ?? -1) + 1
  const isTableNew = !survey.isTableSound || needed > blocks.entries
  // A new table must be able to name a block for each cluster that may be taken.
  const entries = isTableNew
    ? Math.max(blocks.entries, needed, Math.ceil(image.clusters / blocks.perBlock))
    : blocks.entries
  if (entries > MAX_BLOCKS) throw tooLarge(image)
  const tableClusters = isTableNew ? Math.ceil((entries * 8) / image.clusterBytes) : 0
  if (free.count < missing.length + tableClusters) return undefined

  const known = new Set(missing)
  const counted = (cluster: number) => {
    const block = Math.floor(cluster / blocks.perBlock)
    if (survey.isSound[block] || known.has(block)) return
    known.add(block)
    missing.push(block)
  }
  let table = 0
  if (tableClusters > 0) {
    const found = free.takeRow(tableClusters)
    if (found === undefined) return undefined
    table = found
    for (let i = 0; i < tableClusters; i++) counted(table + i)
  }
  const places = new Map<number, number>()
  for (let i = 0; i < missing.length; i++) {
    const cluster = free.takeOne(entries * blocks.perBlock)
    if (cluster === undefined) return undefined
    places.set(missing[i] as number, cluster)
    counted(cluster)
  }
  return new RefcountPlaces(places, table, tableClusters)
}

/** Returns the blocks that are needed and missing, in ascending order. */
const missingBlocks = ({ isNeeded, isSound }: Survey): number[] =>
  Array.from(isNeeded.keys()).filter(block => isNeeded[block] === 1 && isSound[block] === 0)

const isDangling = (path: string): ImageError =>
  new ImageError(
    'CORRUPT',
    'its tables point past the end of the file, where new reference counts would have to be',
    { path, hint: 'save its data with qemu-img convert, or restore a copy' },
  )

const noSpace = (path: string): ImageError =>
  new ImageError(
    'UNSUPPORTED',
    'there is no room for new reference counts: the file cannot grow, and too few clusters in it are free',
    { path, hint: 'repair a copy of it where there is more room' },
  )
