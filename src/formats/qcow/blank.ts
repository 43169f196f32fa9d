/** Makes empty images (QEMU block/qcow.c), for disks that are thrown away. */
import type { WritableStore } from '../../io/store.js'
import { coverageBytes, encodeQcowHeader, ENTRY_BYTES, HEADER, type QcowHeader } from './header.js'

/** Writes an image with a disk of `diskBytes` bytes to an empty file, with clusters and tables as large as those of `like`. */
export function writeBlankQcow(store: WritableStore, like: QcowHeader, diskBytes: number): void {
  const header = encodeQcowHeader({
    ...like,
    sizeBytes: diskBytes,
    l1Offset: HEADER.size,
    backingNameOffset: 0,
    backingNameBytes: 0,
  })
  store.write(header, 0, header.length, 0)
  // Leave a hole for the L1 table: its entries read as 0 and name no table.
  store.truncate(HEADER.size + Math.ceil(diskBytes / coverageBytes(like)) * ENTRY_BYTES)
}
