/**
 * Checks the tables of a qcow image. `qemu-img check` does not know the format; the totals are counted as it counts those of
 * qcow2.
 *
 *  (1) All that makes `vimgfs mount` answer EIO, or refuse to write, is a corruption. Compressed clusters are found by their
 *      entries and are not unpacked: reading them does that.
 *  (2) An L1 entry that names the end of the file is a corruption, too: a program wrote it before the table, and stopped.
 *      Nothing is lost, but a program that goes on writing would put something else there.
 *  (3) Unused space counts as so many leaks as clusters would fit in it, if it can be given back (see check/reclaim.ts).
 */
import type { Store } from '../../io/store.js'
import { type CheckOptions, type CheckResult, CheckReport } from '../check/report.js'
import { clusterBytes, readQcowHeader } from './header.js'
import { inspectTables } from './inspection.js'
import type { InspectOptions, TableSink } from './table-sink.js'
import { reclaimable } from '../check/reclaim.js'

export interface QcowCheckOptions extends CheckOptions, InspectOptions {
  /** Whether the file is a device: then nothing can be given back. */
  readonly isDevice?: boolean
}

/**
 * Checks the image. Throws ImageError if the header is damaged, or if the tables are too large to check; SystemError if the
 * file cannot be read.
 */
export function checkQcow(store: Store, options: QcowCheckOptions = {}): CheckResult {
  const report = new CheckReport()
  options.began?.(report)
  checkTables(store, report, options)
  return report
}

/** The findings that a repair uses. */
export interface Damage {
  /** The place in the file of the L1 entry that names a table which was never written. */
  readonly unwrittenAt: number | undefined
  /** The number of other corruptions. */
  readonly others: number
}

/** Adds the findings to `report`. Throws what `checkQcow` throws. */
export function checkTables(store: Store, report: CheckReport, options: QcowCheckOptions): Damage {
  const header = readQcowHeader(store)
  const cluster = clusterBytes(header)
  let unwrittenAt: number | undefined
  report.totalClusters = Math.ceil(header.sizeBytes / cluster)
  const sink: TableSink = {
    corruption: (at, message) => report.corruption(at, message),
    unwritten: (at, message) => {
      unwrittenAt = at
      report.corruption(at, message)
    },
    unused: (at, bytes) => {
      const lost = options.isDevice ? 0 : reclaimable(store, at, bytes)
      if (lost === 0) return
      report.leak(at, () => `nothing uses ${bytes} bytes`, Math.ceil(lost / cluster))
    },
    totals: ({ allocated, fragmented, compressed, endBytes }) => {
      report.allocatedClusters = allocated
      report.fragmentedClusters = fragmented
      report.compressedClusters = compressed
      report.imageEndOffset = endBytes
    },
  }
  inspectTables(store, header, sink, options)
  const others = report.corruptions - (unwrittenAt === undefined ? 0 : 1)
  return { unwrittenAt, others }
}
