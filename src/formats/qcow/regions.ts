/** The structures of an image that are neither tables nor clusters of the disk, and may share a sector with neighbours. */
import { ENTRY_BYTES, HEADER, type QcowHeader } from './header.js'
import { SECTOR_BYTES } from '../../sector.js'

/** In bytes of the file. */
export interface Region {
  readonly name: string
  readonly offset: number
  readonly end: number
}

/** Returns the end of the L1 table, and the end of its space, in bytes of the file. */
export function l1Place({ l1Offset, l1Entries }: QcowHeader): {
  l1End: number
  l1PaddedEnd: number
} {
  const l1Bytes = l1Entries * ENTRY_BYTES
  const paddedBytes = Math.ceil(l1Bytes / SECTOR_BYTES) * SECTOR_BYTES
  return { l1End: l1Offset + l1Bytes, l1PaddedEnd: l1Offset + paddedBytes }
}

/** Returns the regions that have bytes: the header, the backing file's name, and the L1 table. */
export function regionsOf(header: QcowHeader): Region[] {
  const { backingNameOffset, backingNameBytes, l1Offset } = header
  const name = "the backing file's name"
  return [
    { name: 'the header', offset: 0, end: HEADER.size },
    { name, offset: backingNameOffset, end: backingNameOffset + backingNameBytes },
    { name: 'the L1 table', offset: l1Offset, end: l1Place(header).l1End },
  ].filter(({ offset, end }) => end > offset)
}
