/**
 * Counts what L2 entries name, and checks the entries.
 *
 * Every window needs a walk over the tables. Findings that do not depend on the window are reported only in the first walk.
 */
import type { Qcow2Structure } from './structure.js'
import { L2Entry } from './l2-entry.js'
import type { L2Tables } from './l1-walk.js'
import type { L2Reader } from './l2-read.js'
import type { RefcountBlocks } from './refcount-blocks.js'
import type { Qcow2Report } from './report.js'
import { COUNTED_ONCE, DATA, REFERENCES, TABLE, UNKNOWN, type Window } from './window.js'

export class L2Scan {
  /** Whether something was counted past the end of the file. */
  reachesBeyond = false
  /** Whether an entry does not say where its data are. Then clusters that nothing names may be these data. */
  hasLost = false
  /** The lowest cluster past the end of the file that an entry names. */
  lowestDangling = Number.POSITIVE_INFINITY
  private readonly entry: L2Entry
  private readonly wordsPerEntry: number
  /** The range of host clusters that the current table names. */
  private lowest = 0
  private highest = 0

  constructor(
    private readonly image: Qcow2Structure,
    private readonly reader: L2Reader,
    private readonly window: Window,
    private readonly blocks: RefcountBlocks,
  ) {
    this.entry = new L2Entry(image)
    this.wordsPerEntry = image.l2EntryBytes / 4
  }

  /**
   * Counts the tables and what they name in the window.
   *
   * @param report gets the findings that do not depend on the window
   * @param copied gets wrong COPIED flags; those of the active tables must be right
   * @param reached is told the place of each table, which ascends
   */
  scan(
    tables: L2Tables,
    report: Qcow2Report | undefined,
    copied: Qcow2Report | undefined,
    reached: (at: number) => void,
  ): void {
    const { window } = this
    const { clusterBytes } = this.image
    for (let i = 0; i < tables.length; i++) {
      const at = tables.at[i] as number
      const last = Math.floor((at + clusterBytes - 1) / clusterBytes)
      this.refer(Math.floor(at / clusterBytes), last, TABLE, tables.times[i] as number)
    }
    const leftOut = this.reader.read(
      tables,
      i => {
        const isKnown = report === undefined && !Number.isNaN(tables.lowest[i])
        if (!isKnown) return true
        const { lowest, highest } = tables
        return (highest[i] as number) >= window.first && (lowest[i] as number) < window.end
      },
      (words, i) => {
        this.lowest = Number.POSITIVE_INFINITY
        this.highest = Number.NEGATIVE_INFINITY
        const at = tables.at[i] as number
        // As in QEMU, flags below a table whose count cannot be read are not reported.
        const isUnknown = copied && this.blocks.isUnknown(Math.floor(at / clusterBytes))
        const compared = isUnknown ? undefined : copied
        this.scanTable(words, at, tables.times[i] as number, report, compared, copied !== undefined)
        tables.lowest[i] = this.lowest
        tables.highest[i] = this.highest
        reached(at)
      },
    )
    if (leftOut > 0) {
      report?.error(0, () => `${leftOut} L2 tables that are not aligned were not checked`)
    }
  }

  private scanTable(
    words: Uint32Array,
    tableAt: number,
    times: number,
    report: Qcow2Report | undefined,
    copied: Qcow2Report | undefined,
    isActive: boolean,
  ): void {
    const { entry, image, window } = this
    const { cells } = window
    const { clusterBytes, fileBytes, isExtended } = image
    const step = this.wordsPerEntry
    let expected = 0
    for (let i = 0; i < words.length; i += step) {
      if (words[i] === 0 && words[i + 1] === 0 && !isExtended) continue
      entry.decode(words, i)
      const place = tableAt + i * 4
      if (report) {
        this.inspect(report, place, times)
        if (entry.isLost) this.hasLost = true
      }
      if (entry.isCompressed) {
        if (image.isExternal) continue
        if (report && isActive) {
          report.allocatedClusters += times
          report.compressedClusters += times
          report.fragmentedClusters += times
        }
        this.count(place, times, report)
        continue
      }
      if (!entry.hasHost) continue
      const { at } = entry
      if (report && isActive) {
        report.allocatedClusters += times
        if (expected !== 0 && at !== expected) report.fragmentedClusters += times
        expected = at + clusterBytes
      }
      if (image.isExternal) {
        if (copied && report && !entry.isCopied) this.wrongCopied(copied, place, 1, times)
        continue
      }
      const cluster = Math.floor(at / clusterBytes)
      const index = cluster - window.first
      if (at < fileBytes && entry.isAligned) {
        if (cluster < this.lowest) this.lowest = cluster
        if (cluster > this.highest) this.highest = cluster
        if (index < 0 || index >= window.length) continue
        const cell = cells[index] as number
        const references = Math.min(REFERENCES, (cell & REFERENCES) + times)
        cells[index] = (cell & ~REFERENCES) | DATA | references
      } else {
        this.count(place, times, report)
      }
      if (copied) this.checkCopied(copied, place, cluster, times, report !== undefined)
    }
  }

  private checkCopied(
    copied: Qcow2Report,
    place: number,
    cluster: number,
    times: number,
    isFirst: boolean,
  ): void {
    const { window, entry, blocks, image } = this
    const index = cluster - window.first
    if (index >= 0 && index < window.length) {
      const cell = window.cells[index] as number
      if ((cell & UNKNOWN) !== 0) return
      if (((cell & COUNTED_ONCE) !== 0) === entry.isCopied) return
      this.wrongCopied(copied, place, blocks.get(cluster), times)
    } else if (isFirst && cluster > image.clusters) {
      // No window contains it.
      const count = blocks.get(cluster)
      if (count >= 0 && (count === 1) !== entry.isCopied)
        this.wrongCopied(copied, place, count, times)
    }
  }

  private wrongCopied(copied: Qcow2Report, place: number, count: number, times: number): void {
    const { at, isCopied } = this.entry
    copied.wrongFlag(
      place,
      () =>
        `the L2 entry of the cluster at ${at} ${isCopied ? 'has' : 'lacks'} the COPIED flag, while the count is ${count}`,
      times,
    )
  }

  /** Counts what the current entry names. */
  private count(place: number, times: number, report: Qcow2Report | undefined): void {
    const { at, bytes } = this.entry
    const { image } = this
    if (!image.isInFile(at, bytes)) {
      const cluster = Math.floor(at / image.clusterBytes)
      this.lowestDangling = Math.min(this.lowestDangling, Math.max(cluster, image.clusters))
      report?.corruption(
        place,
        () => `an L2 entry names a cluster at ${at}, past the end of the file`,
        times,
      )
      return
    }
    const first = Math.floor(at / image.clusterBytes)
    const last = Math.floor((at + bytes - 1) / image.clusterBytes)
    if (first < this.lowest) this.lowest = first
    if (last > this.highest) this.highest = last
    this.refer(first, last, DATA, times)
  }

  private refer(first: number, last: number, flags: number, times: number): void {
    if (last >= this.image.clusters) this.reachesBeyond = true
    this.window.refer(first, last, flags, times)
  }

  /** Reports what is wrong with the current entry, wherever it points. */
  private inspect(report: Qcow2Report, place: number, times: number): void {
    const { entry, image } = this
    const corruption = (message: string) => report.corruption(place, () => message, times)
    if (entry.isCompressed) {
      if (entry.isCopied) corruption('the L2 entry of a compressed cluster has the COPIED flag')
      if (image.isExternal)
        corruption('an L2 entry names a compressed cluster, but the data are in another file')
      else if (entry.zeroBits !== 0 || entry.dataBits !== 0)
        corruption('the L2 entry of a compressed cluster has bits of subclusters')
      return
    }
    if (entry.hasReservedBits) corruption('an L2 entry has reserved bits set')
    if (entry.hasImpossibleZeroFlag)
      corruption('an L2 entry has the zero flag, which version 2 does not know')
    if (!entry.hasHost) {
      if (entry.dataBits !== 0) corruption('an L2 entry has subclusters with data, but no cluster')
      return
    }
    if (entry.contradictsItself)
      corruption('an L2 entry has subclusters that have data and read as zeros')
    if (!entry.isAligned) {
      const what = entry.holdsData ? 'data' : 'no data'
      corruption(`an L2 entry names a cluster at ${entry.at}, which is not aligned (${what})`)
    }
  }
}
