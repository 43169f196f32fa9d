/**
 * Decides whether space that no table names may hold data of a lost table. A lost table, or a lost part of one, reads as zeros,
 * which are also the entries of grains that were never written.
 *
 *  (1) Two sound copies of a table that agree are trusted. So space that neither of them names is free, unless they name
 *      nothing at all, or both directories lack a table. If both copies of a table are zeros, more than MAX_CRASHED_GRAINS
 *      are not free: a crash leaves fewer.
 *  (2) A table without a copy is trusted only if it names all of its grains.
 */
import type { Store } from '../../../io/store.js'
import { wholeSectors } from '../grain-tables.js'
import { type GrainLayout, tableBytesOf } from '../layout.js'
import { eachPair, type Table } from '../repair/table-pairs.js'
import { SECTOR_BYTES } from '../../../sector.js'
import { ENTRY_BYTES, UNALLOCATED } from '../entries.js'
import { SPARSE_FIELD_AT } from '../sparse-header.js'

const MAX_CRASHED_GRAINS = 64

export interface Losses {
  /** Whether space that no table names, of so many bytes, may be data. */
  isPossible(unnamedBytes: number): boolean
  /** The place of zeros in the file that were certainly something else once; undefined if there is none. */
  readonly lostAt: number | undefined
}

/** Looks for lost tables. Throws SystemError; ImageError if the file becomes shorter meanwhile. */
export function findLosses(store: Store, layout: GrainLayout): Losses {
  const { grainBytes, tableEntries, capacityBytes, directoryAt, redundantDirectoryAt } = layout
  const grains = Math.ceil(capacityBytes / grainBytes)
  const isSingle = redundantDirectoryAt === undefined || redundantDirectoryAt === directoryAt
  const isPreallocated = hasPreallocatedTables(store, layout, Math.ceil(grains / tableEntries))
  // COWD makes a table with its first grain; a crash may leave a table without any.
  const isMadeOnDemand = layout.freeSectorAt !== undefined && !layout.isUnclean
  let isPossible = false
  let hasBlank = false
  let hasNames = false
  let hasTables = false
  let lostAt: number | undefined
  const entriesOf = (index: number) => Math.min(tableEntries, grains - index * tableEntries)
  const visitPair = (index: number, first: Table, redundant: Table) => {
    const count = entriesOf(index)
    if (count <= 0) return false
    const unnamed = unnamedIn(first, count)
    hasTables = true
    if (unnamed < count) hasNames = true
    else hasBlank = true
    if (unnamed > 0 && (isSingle || first.sector === redundant.sector)) isPossible = true
    if (isMadeOnDemand && unnamed === count) lostAt ??= first.entryAt
    // The other tables cannot change the result.
    const isLossKnown = lostAt !== undefined || !(isMadeOnDemand || isPreallocated)
    return !(isPossible && hasNames && isLossKnown)
  }
  eachPair(store, layout, visitPair, index => {
    if (entriesOf(index) <= 0) return false
    isPossible = true
    if (isPreallocated) lostAt ??= directoryAt + index * ENTRY_BYTES
    return true
  })
  if (!hasTables && isMadeOnDemand) lostAt ??= directoryAt
  const leastBytes = hasBlank ? MAX_CRASHED_GRAINS * grainBytes : Number.POSITIVE_INFINITY
  return {
    isPossible: unnamedBytes => isPossible || !hasNames || unnamedBytes > leastBytes,
    lostAt,
  }
}

function unnamedIn({ isBlank, words }: Table, count: number): number {
  if (isBlank) return count
  let unnamed = 0
  for (let i = 0; i < count; i++) if (words[i] === UNALLOCATED) unnamed++
  return unnamed
}

/** Reports whether the tables of a hosted extent lie before its grains, as in all extents that are made with tables. */
function hasPreallocatedTables(store: Store, layout: GrainLayout, tables: number): boolean {
  if (layout.freeSectorAt !== undefined) return false
  const field = Buffer.alloc(8)
  store.read(field, 0, field.length, SPARSE_FIELD_AT.overhead)
  const overheadBytes = Number(field.readBigUInt64LE()) * SECTOR_BYTES
  const end = layout.directoryAt + wholeSectors(layout.directoryEntries * ENTRY_BYTES)
  return overheadBytes >= end + tables * tableBytesOf(layout)
}
