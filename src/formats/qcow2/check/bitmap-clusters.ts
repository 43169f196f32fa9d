/** The clusters of bitmaps (QEMU docs/interop/qcow2.rst, "Bitmaps", "Bitmap table"). */
import type { Qcow2Structure } from './structure.js'
import { BITMAP_RESERVED, hostOffset, readWords, wordBuffer } from '../words.js'
import { ALL_ONES } from '../bitmap-table.js'

export interface BitmapCluster {
  /** The place of the table's entry in the file. */
  readonly entryAt: number
  /** 0 if all bits are the same and none are stored. */
  readonly at: number
  readonly isSound: boolean
}

const CHUNK_BYTES = 64 * 1024

/** Yields the entries of all bitmap tables that are not 0, as far as the file contains them. */
export function* bitmapClusters(image: Qcow2Structure): Generator<BitmapCluster> {
  if (!image.bitmaps || image.bitmaps.tables.length === 0) return
  const buffer = wordBuffer(CHUNK_BYTES)
  for (const { tableAt, tableEntries } of image.bitmaps.tables) {
    const end = Math.min(tableAt + tableEntries * 8, Math.floor(image.fileBytes / 8) * 8)
    for (let at = tableAt; at < end; at += CHUNK_BYTES) {
      const words = readWords(image.store, buffer, Math.min(CHUNK_BYTES, end - at), at)
      for (let i = 0; i < words.length; i += 2) {
        const high = words[i] as number
        const low = words[i + 1] as number
        if (high === 0 && low === 0) continue
        const host = hostOffset(high, low)
        const isSound =
          (high & BITMAP_RESERVED.high) === 0 &&
          (low & BITMAP_RESERVED.low) === 0 &&
          host % image.clusterBytes === 0 &&
          (host === 0 || (low & ALL_ONES) === 0)
        yield { entryAt: at + i * 4, at: host, isSound }
      }
    }
  }
}
