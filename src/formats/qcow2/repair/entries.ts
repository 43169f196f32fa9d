/**
 * Corrects impossible entries without changing what the disk reads as. It clears bits that no reader uses, and drops a host
 * cluster that cannot exist if no byte of the disk is read from it. An entry with data that cannot be understood stays.
 */
import type { Qcow2Structure } from '../check/structure.js'
import { L2Entry } from '../check/l2-entry.js'
import { COPIED, hostOffset, L1_RESERVED, L2_RESERVED, ZERO_FLAG } from '../words.js'
import type { Change } from './table-editor.js'

export function soundL1Entry(high: number, low: number): Change | undefined {
  if (hostOffset(high, low) === 0) {
    return { high: 0, low: 0, message: 'an L1 entry without a table is cleared' }
  }
  const soundHigh = (high & ~L1_RESERVED.high) >>> 0
  const soundLow = (low & ~L1_RESERVED.low) >>> 0
  if (soundHigh === high && soundLow === low) return undefined
  return { high: soundHigh, low: soundLow, message: 'reserved bits of an L1 entry are cleared' }
}

/** Returns a function that corrects the words of one L2 entry, and returns a description of the change. */
export function soundL2Entries(
  image: Qcow2Structure,
): (words: Uint32Array, i: number) => string | undefined {
  const entry = new L2Entry(image)
  return (words, i) => {
    entry.decode(words, i)
    if (entry.isCompressed) {
      // A compressed cluster and an external data file contradict each other: nobody knows which is right.
      if (image.isExternal) return undefined
      if (!entry.isCopied && entry.zeroBits === 0 && entry.dataBits === 0) return undefined
      words[i] = (entry.high & ~COPIED) >>> 0
      if (image.isExtended) words.fill(0, i + 2, i + 4)
      return 'flags that a compressed cluster must not have are cleared in its L2 entry'
    }
    const { hasReservedBits } = entry
    if (hasReservedBits) {
      words[i] = (entry.high & ~L2_RESERVED.high) >>> 0
      words[i + 1] = (entry.low & ~L2_RESERVED.low) >>> 0
    }
    const isUnused = entry.hasHost && !entry.holdsData && !entry.hasImpossibleZeroFlag
    const isNowhere =
      !entry.isAligned || (!image.isExternal && !image.isInFile(entry.at, entry.bytes))
    if (isUnused && isNowhere) {
      words[i] = 0
      words[i + 1] = image.isExtended ? 0 : ZERO_FLAG
      return `an L2 entry that reads as zeros no longer names a cluster at ${entry.at}`
    }
    return hasReservedBits ? 'reserved bits of an L2 entry are cleared' : undefined
  }
}
