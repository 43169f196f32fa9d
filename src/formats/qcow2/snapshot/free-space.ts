/**
 * Hands out free clusters for the new tables of a change. Each has the count 0 in the old state and no known metadata, and is
 * handed out once. So the old state stays whole, and what the new state frees is not used again before the header has changed.
 */
import { constants } from 'node:os'
import { SystemError } from '../../../errors.js'
import type { MetadataMap } from '../metadata-map.js'
import type { OldCounts } from './old-counts.js'

const { EFBIG } = constants.errno
/** A host offset has 56 bits; numbers are exact up to 2^53. */
const MAX_FILE_BYTES = 2 ** 53

export class FreeSpace {
  /** Where the search for single clusters goes on, and the one for rows. */
  private next = 0
  private nextRow = 0
  private readonly rows: { readonly first: number; readonly end: number }[] = []

  constructor(
    private readonly counts: OldCounts,
    private readonly metadataMap: MetadataMap,
    private readonly clusterBytes: number,
    private readonly path: string,
  ) {}

  /** Returns a free cluster. Throws SystemError if the file would be too large. */
  takeOne(): number {
    for (let cluster = this.next; ; cluster++) {
      cluster = this.counts.nextFree(cluster)
      if (!this.isFree(cluster) || this.isInRow(cluster)) continue
      this.next = cluster + 1
      return cluster
    }
  }

  /** Returns the first of `clusters` free clusters in a row. Throws SystemError if the file would be too large. */
  takeRow(clusters: number): number {
    if (clusters === 1) return this.takeOne()
    let first = Math.max(this.next, this.nextRow)
    for (let cluster = first; ; ) {
      if (!this.isFree(cluster)) {
        first = this.counts.nextFree(cluster + 1)
        cluster = first
      } else if (++cluster - first === clusters) break
    }
    const end = first + clusters
    this.nextRow = end
    this.rows.push({ first, end })
    return first
  }

  private isInRow(cluster: number): boolean {
    return this.rows.some(({ first, end }) => cluster >= first && cluster < end)
  }

  private isFree(cluster: number): boolean {
    if ((cluster + 1) * this.clusterBytes > MAX_FILE_BYTES) {
      throw new SystemError('write', EFBIG, this.path)
    }
    return this.counts.get(cluster) === 0 && this.metadataMap.kindOf(cluster) === 0
  }
}
