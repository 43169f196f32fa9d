/** What a sparse extent consists of that can be written: hosted ones and COWD extents are alike in it. */
import type { CowdHeader } from './cowd.js'
import { type Region, TABLE_ENTRIES, wholeSectors } from './grain-tables.js'
import type { ExtentLayout } from './image.js'
import { SECTOR_BYTES } from './parts.js'
import { directoryEntries, type SparseHeader } from './sparse-header.js'

/** Plain data; places and sizes are in bytes, entries of directories and tables are u32 counts of sectors. */
export interface GrainLayout {
  readonly capacityBytes: number
  readonly grainBytes: number
  /** Of a grain table. */
  readonly tableEntries: number
  readonly directoryAt: number
  readonly directoryEntries: number
  /** Of the second directory, with tables of its own, where there is one that is kept up. */
  readonly redundantDirectoryAt: number | undefined
  /** Whether an entry of 1 says that the grain is zeros. */
  readonly hasZeroGrains: boolean
  readonly isUnclean: boolean
  /** Where the header and the descriptor are. */
  readonly reserved: readonly Region[]
  /** Of the header, in whole sectors. */
  readonly headerBytes: number
  /** The field of the header that is not 0 while the extent is open for writing. */
  readonly uncleanAt: number
  readonly uncleanBytes: 1 | 4
  /** The field of the header that says where the next grain goes, a u32 in sectors. */
  readonly freeSectorAt: number | undefined
}

/** Undefined for extents without grains that lie in the file as they are. */
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
    uncleanAt: 72,
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
    uncleanAt: 1648,
    uncleanBytes: 4,
    freeSectorAt: 28,
  }
}

const COWD_HEADER_BYTES = 2048

/** Bytes of a grain table. */
export const tableBytesOf = ({ tableEntries }: Pick<GrainLayout, 'tableEntries'>): number =>
  wholeSectors(tableEntries * 4)

/** Entries, and the next free sector of COWD, count sectors in 32 bits. */
export const MAX_FILE_BYTES = (2 ** 32 - 1) * SECTOR_BYTES

/** Where the file of an extent ends at most, once all its grains are allocated; in bytes. */
export function largestFile(fileBytes: number, layout: GrainLayout): number {
  const { capacityBytes, grainBytes, directoryEntries } = layout
  const grains = Math.ceil(capacityBytes / grainBytes) + 1
  // Behind a table the next grain may begin up to a grain later.
  const tables = directoryEntries * (2 * tableBytesOf(layout) + grainBytes)
  const whole = wholeSectors(fileBytes)
  return Math.max(whole, Math.min(MAX_FILE_BYTES, whole + grains * grainBytes + tables))
}
