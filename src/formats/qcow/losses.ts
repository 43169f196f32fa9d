/**
 * Tells whether space that no table names may hold data of a table that was lost. A lost table reads as zeros.
 * So does a table that a crash has left before its first entries were written, with the clusters that it was to
 * name.
 *
 *  (1) If the L1 table names nothing, all that the file holds may be data.
 *  (2) If an L2 table names nothing, what follows it in the file may be its data: programs append clusters after
 *      their table. A crash leaves few of them, so more than MAX_CRASHED are taken for data.
 */
import type { Store } from '../../io/store.js'
import { clusterBytes, type QcowHeader } from './header.js'
import { inspectTables } from './inspection.js'
import { reclaimable } from '../check/reclaim.js'
import type { InspectOptions } from './table-sink.js'
import { TableWalk } from './table-walk.js'

/** Clusters. */
const MAX_CRASHED = 64

/** The tables are sound otherwise. Throws as `inspectTables`. */
export function isLossPossible(store: Store, header: QcowHeader, options: InspectOptions): boolean {
  const walk = new TableWalk(store, header)
  let hasTables = false
  let blankAt = Number.POSITIVE_INFINITY
  walk.eachTable((_, table) => {
    hasTables = true
    if (table < blankAt && walk.isBlank(table)) blankAt = table
  })
  if (!hasTables) return true
  if (blankAt === Number.POSITIVE_INFINITY) return false
  let bytes = 0
  const unused = (at: number, length: number) => {
    const from = Math.max(at, blankAt)
    if (at + length > from) bytes += reclaimable(store, from, at + length - from)
  }
  inspectTables(store, header, { corruption: () => {}, unused }, options)
  return bytes > MAX_CRASHED * clusterBytes(header)
}
