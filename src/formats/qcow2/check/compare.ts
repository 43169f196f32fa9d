/** Compares the counts of the image with the references that were found. */
import type { Census } from './census.js'
import { clustersOf, type FindingRun, FindingRuns } from './finding-runs.js'
import { DATA, EXCLUSIVE, REFERENCES, TABLE, UNKNOWN } from './window.js'
import type { Qcow2Report } from './report.js'

/** Compares the census's window. Returns the end of the last cluster in use, in clusters. */
export function compareCounts(census: Census, report: Qcow2Report): number {
  const { window, blocks, image } = census
  const { cells, first } = window
  const { maxCount } = image
  const runs = new FindingRuns<Fault>(run => describe(run, image.clusterBytes, report))
  const overlaps = new FindingRuns<'overlap'>(run =>
    describeOverlap(run, image.clusterBytes, report),
  )
  // The cluster after the end of the file counts if something names it.
  const end = Math.min(window.end, image.clusters + (census.reachesBeyond ? 1 : 0))
  let used = 0
  for (let from = first; from < end; from += blocks.perSlice) {
    const stop = Math.min(end, from + blocks.perSlice)
    const slice = blocks.slice(from)
    for (let cluster = from; cluster < stop; cluster++) {
      const cell = cells[cluster - first] as number
      const references = cell & REFERENCES
      if (references > maxCount) {
        const more = references - maxCount
        const at = cluster * image.clusterBytes
        report.corruption(
          at,
          () => `the cluster: references ${references}, the highest count that fits is ${maxCount}`,
          more,
        )
      }
      const isReadable = (cell & UNKNOWN) === 0 && slice !== undefined
      const counted = isReadable ? blocks.read(slice, cluster - from) : -1
      const expected = Math.min(references, maxCount)
      if (isReadable && (counted > 0 || expected > 0)) used = cluster + 1
      if (isReadable && counted < expected) {
        runs.add(cluster, 'corruption', counted, references)
        continue
      }
      if (!isReadable) runs.add(cluster, 'error', counted, references)
      else if (counted > expected) runs.add(cluster, 'leak', counted, references)
      // Report this whatever the count is: correcting the count alone does not repair an overlap.
      if (references <= maxCount && isOverlap(cell, references)) {
        overlaps.add(cluster, 'overlap', counted, references)
      }
    }
  }
  runs.end()
  overlaps.end()
  return used
}

const isOverlap = (cell: number, references: number): boolean =>
  ((cell & EXCLUSIVE) !== 0 && references > 1) || ((cell & TABLE) !== 0 && (cell & DATA) !== 0)

type Fault = 'corruption' | 'leak' | 'error'

function describe(run: FindingRun<Fault>, clusterBytes: number, report: Qcow2Report): void {
  const { kind, length, counted, references } = run
  const at = run.start * clusterBytes
  const what = clustersOf(run)
  const message = () => `${what}: count ${counted}, references ${references}`
  if (kind === 'leak') report.leak(at, message, length)
  else if (kind === 'corruption') report.corruption(at, message, length)
  else report.error(at, () => `${what}: count unreadable, references ${references}`, length)
}

function describeOverlap(
  run: FindingRun<'overlap'>,
  clusterBytes: number,
  report: Qcow2Report,
): void {
  report.corruption(
    run.start * clusterBytes,
    () =>
      `${clustersOf(run)}: references ${run.references}, by structures that share no cluster with others`,
    run.length,
  )
}
