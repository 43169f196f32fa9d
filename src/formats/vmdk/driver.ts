/** Finds the bytes of a VMDK disk: its extents follow one another. */
import type { ClusterCache } from '../../cache/cluster-cache.js'
import type { MetadataCache } from '../../cache/metadata-cache.js'
import { ImageError } from '../../errors.js'
import type { Store } from '../../io/store.js'
import type { Extent, FormatDriver } from '../driver.js'
import { CowdDriver } from './cowd.js'
import { wholeSectors } from './grain-tables.js'
import type { VmdkExtent, VmdkSpec } from './open.js'
import { grainLayout, largestFile } from './layout.js'
import type { ReadTable } from './parts.js'
import { SesparseDriver } from './sesparse.js'
import { SparseDriver } from './sparse-driver.js'

export interface VmdkParts {
  readonly spec: VmdkSpec
  /** The store of each extent, with its id in the caches; undefined if the extent has no file. */
  readonly stores: readonly ({ readonly store: Store; readonly storeId: number } | undefined)[]
  /** The layer's id in the cache of tables, 0 to 511. */
  readonly layerId: number
  readonly metadata: MetadataCache
  readonly clusters: ClusterCache
  /** Whether it is written, so that the files of its extents may become longer. */
  readonly isWritten?: boolean
}

/** An extent's place on the disk, in bytes. */
export interface Placed {
  /** Its index among the extents of the descriptor. */
  readonly index: number
  readonly start: number
  readonly end: number
  readonly driver: Pick<FormatDriver, 'lookup'>
  /** Reads its tables; undefined if it has no file. */
  readonly readTable: ReadTable | undefined
  /** The start of its file in the space of the cache, and the size of its part, in bytes. */
  readonly base: number
  readonly spanBytes: number
}

export class VmdkDriver implements FormatDriver {
  /** 1, because all programs write whole sectors, so that any bytes that a file lacks at its end are lost. */
  readonly unitBytes = 1
  readonly sizeBytes: number
  /** The extents that hold a part of the disk, in order. */
  readonly extents: readonly Placed[]
  /** The extent of the last lookup: most requests go on where the one before ended. */
  private last: Placed

  constructor(parts: VmdkParts) {
    this.sizeBytes = parts.spec.sizeBytes
    this.extents = placeExtents(parts)
    this.last = this.extents[0] as Placed
  }

  lookup(offset: number, length: number): Extent {
    const { start, end, driver } = this.extentAt(offset)
    return driver.lookup(offset - start, Math.min(length, end - offset))
  }

  /** Returns the extent that holds the byte at `offset`. */
  extentAt(offset: number): Placed {
    if (offset >= this.last.start && offset < this.last.end) return this.last
    let low = 0
    let high = this.extents.length - 1
    while (low < high) {
      const middle = Math.floor((low + high + 1) / 2)
      if ((this.extents[middle] as Placed).start <= offset) low = middle
      else high = middle - 1
    }
    this.last = this.extents[low] as Placed
    return this.last
  }
}

function placeExtents(parts: VmdkParts): Placed[] {
  let start = 0
  // Tables of all extents share one space of the cache, each file after the one before.
  let base = 0
  const all: Placed[] = []
  parts.spec.extents.forEach((extent, index) => {
    const end = start + extent.sizeBytes
    const spanBytes = spanOf(extent, parts.isWritten === true)
    if (end > start) {
      const readTable = tableReader(index, base, parts)
      const driver = driverOf(extent, index, readTable, parts)
      all.push({ index, start, end, driver, readTable, base, spanBytes })
    }
    start = end
    base += spanBytes
    if (!Number.isSafeInteger(base)) {
      const what = 'the files of its extents are too large to be real'
      throw new ImageError('CORRUPT', what, { path: extent.file?.path ?? '' })
    }
  })
  return all
}

function spanOf({ file, layout }: VmdkExtent, isWritten: boolean): number {
  if (!file) return 0
  const grains = isWritten ? grainLayout(layout) : undefined
  return grains ? largestFile(file.sizeBytes, grains) : wholeSectors(file.sizeBytes)
}

function tableReader(
  index: number,
  base: number,
  { stores, layerId, metadata }: VmdkParts,
): ReadTable | undefined {
  const store = stores[index]?.store
  if (!store) return undefined
  return (at, length) => {
    // Past the end of this file the cache would return tables of the next file.
    if (at + length > store.sizeBytes) {
      const what = `a table at ${at} lies beyond the end of the file`
      throw new ImageError('CORRUPT', what, { path: store.path })
    }
    return metadata.slice(store, layerId, at, length, base + at)
  }
}

function driverOf(
  { layout }: VmdkExtent,
  index: number,
  readTable: ReadTable | undefined,
  { stores, clusters }: VmdkParts,
): Pick<FormatDriver, 'lookup'> {
  const file = stores[index]
  if (layout.kind === 'zero' || !file || !readTable) {
    return { lookup: (_, length) => ({ kind: 'zero', length }) }
  }
  const { store, storeId } = file
  if (layout.kind === 'flat') {
    const { startBytes } = layout
    return {
      lookup: (offset, length) => ({ kind: 'data', length, store, at: startBytes + offset }),
    }
  }
  const extentParts = { store, storeId, readTable, grains: clusters }
  if (layout.kind === 'sparse') return new SparseDriver(extentParts, layout.header)
  if (layout.kind === 'cowd') return new CowdDriver(extentParts, layout.header)
  return new SesparseDriver(extentParts, layout.header)
}
