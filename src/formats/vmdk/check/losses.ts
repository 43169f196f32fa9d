/**
 * Tells whether space that no table names may hold data of a table that was lost. A lost table, or a lost part
 * of one, reads as zeros, which is also what a table says of grains that were never written.
 *
 *  (1) Two sound copies of a table that agree are believed. So space that neither names is free, unless they
 *      name nothing at all, or both directories lack a table.
 *  (2) A table without a copy is believed only where it names all of its grains.
 */
import type { Store } from '../../../io/store.js'
import { wholeSectors } from '../grain-tables.js'
import { type GrainLayout, tableBytesOf } from '../layout.js'
import { SECTOR_BYTES } from '../parts.js'
import { eachPair } from '../repair/table-pairs.js'

const SILENT = 0
const ENTRY_BYTES = 4
/** Where the header of a hosted extent says how many sectors come before the first grain, a u64. */
const OVERHEAD_AT = 64

export interface Losses {
  /** Whether space that no table names may be data. */
  readonly isPossible: boolean
  /** Where in the file something is zeros that was surely written; undefined where nothing is. */
  readonly lostAt: number | undefined
}

/** Looks for lost tables. Throws SystemError; ImageError where the file becomes shorter meanwhile. */
export function findLosses(store: Store, layout: GrainLayout): Losses {
  const { grainBytes, tableEntries, capacityBytes, directoryAt, redundantDirectoryAt } = layout
  const grains = Math.ceil(capacityBytes / grainBytes)
  const isSingle = redundantDirectoryAt === undefined || redundantDirectoryAt === directoryAt
  const isPreallocated = hasPreallocatedTables(store, layout, Math.ceil(grains / tableEntries))
  // The tables of COWD come with their first grains; a crash may leave one without any.
  const isMadeOnDemand = layout.freeSectorAt !== undefined && !layout.isUnclean
  let isPossible = false
  let hasNames = false
  let hasTables = false
  let lostAt: number | undefined
  eachPair(store, layout, (index, first, redundant) => {
    const count = Math.min(tableEntries, grains - index * tableEntries)
    if (count <= 0) return false
    const isAbsent = first.sector === SILENT && redundant.sector === SILENT
    let unnamed = 0
    for (let i = 0; i < count; i++) if (first.words[i] === SILENT) unnamed++
    if (unnamed < count) hasNames = true
    if (!isAbsent) hasTables = true
    if (unnamed > 0 && (isAbsent || isSingle || first.sector === redundant.sector)) {
      isPossible = true
    }
    if (isAbsent ? isPreallocated : isMadeOnDemand && unnamed === count) lostAt ??= first.entryAt
    return true
  })
  if (!hasTables && isMadeOnDemand) lostAt ??= directoryAt
  return { isPossible: isPossible || !hasNames, lostAt }
}

/** Whether the tables of a hosted extent lie before its grains, as in all that are made with their tables. */
function hasPreallocatedTables(store: Store, layout: GrainLayout, tables: number): boolean {
  if (layout.freeSectorAt !== undefined) return false
  const field = Buffer.alloc(8)
  store.read(field, 0, field.length, OVERHEAD_AT)
  const overheadBytes = Number(field.readBigUInt64LE()) * SECTOR_BYTES
  const end = layout.directoryAt + wholeSectors(layout.directoryEntries * ENTRY_BYTES)
  return overheadBytes >= end + tables * tableBytesOf(layout)
}
