/** Reads L2 tables; neighbours in the file together. */
import type { Qcow2Structure } from './structure.js'
import type { L2Tables } from './l1-walk.js'
import { readWords, wordBuffer } from '../words.js'

const MAX_READ_BYTES = 2 * 2 ** 20
/**
 * The most unaligned tables that are read. They are read so that what they may name is kept. Sound images have none. Every
 * sector of the file could be the place of one, and each costs reading a cluster.
 */
const MAX_UNALIGNED = 1024

export class L2Reader {
  private readonly buffer: Buffer

  constructor(private readonly image: Qcow2Structure) {
    this.buffer = wordBuffer(Math.max(MAX_READ_BYTES, image.clusterBytes))
  }

  /**
   * Calls `visit` with the words of each table for which `wants` returns true; they are valid during the call. Returns how many
   * unaligned tables were left out.
   */
  read(
    tables: L2Tables,
    wants: (index: number) => boolean,
    visit: (words: Uint32Array, index: number) => void,
  ): number {
    const { clusterBytes, store } = this.image
    const perRead = this.buffer.length / clusterBytes
    const wordsOfTable = clusterBytes / 4
    let unaligned = 0
    for (let i = 0; i < tables.length; ) {
      const at = tables.at[i] as number
      if (!wants(i) || (at % clusterBytes !== 0 && ++unaligned > MAX_UNALIGNED)) {
        i++
        continue
      }
      let count = 1
      while (
        count < perRead &&
        i + count < tables.length &&
        tables.at[i + count] === at + count * clusterBytes &&
        wants(i + count)
      ) {
        count++
      }
      const words = readWords(store, this.buffer, count * clusterBytes, at)
      for (let j = 0; j < count; j++) {
        visit(words.subarray(j * wordsOfTable, (j + 1) * wordsOfTable), i + j)
      }
      i += count
    }
    return Math.max(0, unaligned - MAX_UNALIGNED)
  }
}
