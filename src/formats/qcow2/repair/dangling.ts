/**
 * Finds pointers past the end of the file. Repairs must append nothing there: otherwise an entry that reads as zeros, or fails
 * to read, would suddenly show bytes that were never meant for it.
 */
import type { Census } from '../check/census.js'
import { walkL1 } from '../check/l1-walk.js'
import { hostOffset } from '../words.js'

/**
 * Returns the lowest cluster past the end of the file that a structure reaches, or that an entry names; infinite if there is
 * none. Structures that end less than a cluster past the end do not count (Qcow2Structure.isInFile).
 *
 * @param census a census that has run
 */
export function lowestDangling(census: Census): number {
  const { image } = census
  let lowest = census.lowestDangling
  for (const table of image.l1Tables) {
    walkL1(image.store, table, (high, low) => {
      const at = hostOffset(high, low)
      if (at >= image.fileBytes) lowest = Math.min(lowest, Math.floor(at / image.clusterBytes))
    })
  }
  return lowest
}
