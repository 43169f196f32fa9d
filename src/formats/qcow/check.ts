/**
 * Checking a qcow image: whether its tables make sense. `qemu-img check` does not know the format; the
 * totals are counted as it counts those of qcow2.
 *
 *  (1) What `vimgfs mount` answers EIO for, or refuses to write, is a corruption. Compressed clusters are
 *      found by their entries and are not inflated: reading them does that.
 *  (2) So is an L1 entry that names the end of the file, which a program wrote before the table and did not
 *      come to write that: nothing is lost, but a program that goes on writes something else there.
 *  (3) Space that nothing uses is as many leaks as clusters would need it, if it can be given back (see
 *      space.ts).
 */
import type { Store } from '../../io/store.js'
import { type CheckOptions, type CheckResult, Report } from '../check/report.js'
import { clusterBytes, readQcowHeader } from './header.js'
import { type InspectOptions, inspectTables, type TableSink } from './inspection.js'
import { reclaimable } from './space.js'

export interface QcowCheckOptions extends CheckOptions, InspectOptions {
  /** Whether the file is a device, of which nothing can be given back. */
  readonly isDevice?: boolean
}

/**
 * Checks the image. Throws ImageError where the header is damaged, or where the tables are too much to go
 * over; SystemError where the file cannot be read.
 */
export function checkQcow(store: Store, options: QcowCheckOptions = {}): CheckResult {
  const report = new Report()
  checkTables(store, report, options)
  return report
}

/** What a repair goes by. */
export interface Damage {
  /** Where the L1 entry is that names a table which was never written, in bytes of the file. */
  readonly unwrittenAt: number | undefined
  /** Corruptions besides that. */
  readonly others: number
}

/** Adds what is found to `report`; throws as `checkQcow`. */
export function checkTables(store: Store, report: Report, options: QcowCheckOptions): Damage {
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
