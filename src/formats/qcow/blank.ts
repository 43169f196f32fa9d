/** An empty image in a file of nobody's (QEMU block/qcow.c): for disks that are thrown away. */
import type { WritableStore } from '../../io/store.js'
import { coverageBytes, encodeQcowHeader, ENTRY_BYTES, HEADER, type QcowHeader } from './header.js'

/** Writes an image with a disk of `diskBytes` to an empty file, with clusters and tables as `like` has them. */
export function writeBlankQcow(store: WritableStore, like: QcowHeader, diskBytes: number): void {
  const header = encodeQcowHeader({ ...like, sizeBytes: diskBytes, l1Offset: HEADER.size })
  store.write(header, 0, header.length, 0)
  // An entry of a hole names no table.
  store.truncate(HEADER.size + Math.ceil(diskBytes / coverageBytes(like)) * ENTRY_BYTES)
}
