/**
 * What points behind the end of the file. What repairs append must not lie there: something that reads as
 * nothing, or not at all, would find bytes that it never meant.
 */
import type { Census } from '../check/census.js'
import { walkL1 } from '../check/l1-walk.js'
import { hostOffset } from '../words.js'

/**
 * The lowest cluster behind the file that a structure reaches into, or an entry names; infinite where there
 * is none. What ends less than a cluster behind the file does not count (CheckedImage.isInFile).
 *
 * @param census that has run
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
