/** External data files (QEMU docs/interop/qcow2.rst, "external data file bit"). */
import { l2CoverageBytes } from '../header.js'
import type { Qcow2Structure } from './structure.js'
import { walkL1 } from './l1-walk.js'
import { L2Entry } from './l2-entry.js'
import type { Qcow2Report } from './report.js'
import { hostOffset, readWords, wordBuffer } from '../words.js'

/** Checks that each cluster of the disk is at the same offset in the data file. */
export function checkDataPlaces(image: Qcow2Structure, report: Qcow2Report): void {
  const { store, clusterBytes, l2EntryBytes } = image
  const coverage = l2CoverageBytes(image.header)
  const buffer = wordBuffer(clusterBytes)
  const entry = new L2Entry(image)
  const step = l2EntryBytes / 4
  for (const table of image.l1Tables.filter(({ isActive }) => isActive)) {
    walkL1(store, table, (high, low, index) => {
      const tableAt = hostOffset(high, low)
      if (tableAt === 0 || tableAt >= image.fileBytes || tableAt % clusterBytes !== 0) return
      const words = readWords(store, buffer, clusterBytes, tableAt)
      for (let i = 0; i < words.length; i += step) {
        entry.decode(words, i)
        const offset = index * coverage + (i / step) * clusterBytes
        if (entry.isCompressed || !entry.hasHost || entry.at === offset) continue
        // That is reported as another corruption.
        if (!entry.isAligned) continue
        const { at } = entry
        report.corruption(
          tableAt + i * 4,
          () => `the L2 entry of the cluster at ${offset} maps ${at} of the data file`,
        )
      }
    })
  }
}
