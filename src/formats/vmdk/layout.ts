/** The structure of a sparse extent that can be written. Hosted and COWD extents have the same. */
import { COWD_FIELD_AT, COWD_HEADER_BYTES, type CowdHeader } from './cowd.js'
import { type Region, TABLE_ENTRIES, wholeSectors } from './grain-tables.js'
import type { ExtentLayout } from './open.js'
import { directoryEntries, SPARSE_FIELD_AT, type SparseHeader } from './sparse-header.js'
import { SECTOR_BYTES } from '../../sector.js'

/** Plain data; places and sizes are in bytes, entries of directories and tables are u32 counts of sectors. */
export interface GrainLayout {
  readonly capacityBytes: number
  readonly grainBytes: number
  /** The number of entries of a grain table. */
  readonly tableEntries: number
  readonly directoryAt: number
  readonly directoryEntries: number
  /** The second directory, with its own tables, if there is one that is kept up to date. */
  readonly redundantDirectoryAt: number | undefined
  /** Whether an entry of 1 means that the grain is zeros. */
  readonly hasZeroGrains: boolean
  readonly isUnclean: boolean
  /** The places of the header and the descriptor. */
  readonly reserved: readonly Region[]
  /** The size of the header, in whole sectors. */
  readonly headerBytes: number
  /** The header's field that is not 0 while the extent is open for writing. */
  readonly uncleanAt: number
  readonly uncleanBytes: 1 | 4
  /** The header's field with the place of the next grain, a u32 in sectors. */
  readonly freeSectorAt: number | undefined
}

/** Returns undefined for extents without grains, or with compressed ones. */
export function grainLayout(layout: ExtentLayout): GrainLayout | undefined {
  if (layout.kind === 'sparse' && !layout.header.isCompressed) return hosted(layout.header)
  if (layout.kind === 'cowd') return cowd(layout.header)
  return undefined
}

function hosted(header: SparseHeader): GrainLayout {
  const { capacityBytes, grainBytes, tableEntries, directoryAt, redundantDirectoryAt } = header
  return {
    capacityBytes,
    grainBytes,
    tableEntries,
    directoryAt,
    directoryEntries: directoryEntries(header),
    redundantDirectoryAt,
    hasZeroGrains: header.hasZeroGrains,
    isUnclean: header.isUnclean,
    reserved: [
      { offset: 0, bytes: SECTOR_BYTES },
      ...(header.descriptor ? [header.descriptor] : []),
    ],
    headerBytes: SECTOR_BYTES,
    uncleanAt: SPARSE_FIELD_AT.unclean,
    uncleanBytes: 1,
    freeSectorAt: undefined,
  }
}

function cowd(header: CowdHeader): GrainLayout {
  const { capacityBytes, grainBytes } = header
  return {
    capacityBytes,
    grainBytes,
    tableEntries: TABLE_ENTRIES,
    directoryAt: header.directoryOffset,
    directoryEntries: header.directoryEntries,
    redundantDirectoryAt: undefined,
    hasZeroGrains: false,
    isUnclean: header.isUnclean,
    reserved: [{ offset: 0, bytes: COWD_HEADER_BYTES }],
    headerBytes: COWD_HEADER_BYTES,
    uncleanAt: COWD_FIELD_AT.unclean,
    uncleanBytes: 4,
    freeSectorAt: COWD_FIELD_AT.freeSector,
  }
}

/** Returns the size of a grain table, in bytes. */
export const tableBytesOf = ({ tableEntries }: Pick<GrainLayout, 'tableEntries'>): number =>
  wholeSectors(tableEntries * 4)

/** Entries, and the next free sector of COWD, count sectors in 32 bits. */
export const MAX_FILE_BYTES = (2 ** 32 - 1) * SECTOR_BYTES

/** Returns the largest size of an extent's file, with all its grains allocated, in bytes. */
export function largestFile(fileBytes: number, layout: GrainLayout): number {
  const { capacityBytes, grainBytes, directoryEntries } = layout
  const grains = Math.ceil(capacityBytes / grainBytes) + 1
  // After a table the next grain may begin up to a grain later.
  const tables = directoryEntries * (2 * tableBytesOf(layout) + grainBytes)
  const whole = wholeSectors(fileBytes)
  return Math.max(whole, Math.min(MAX_FILE_BYTES, whole + grains * grainBytes + tables))
}
