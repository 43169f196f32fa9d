/** Compares redundant grain tables with the first ones, which count. */
import type { GrainSink } from './grain-sink.js'
import type { GrainLayout } from '../layout.js'
import type { Directory } from './directory.js'
import { SECTOR_BYTES } from '../../../sector.js'
import { UNALLOCATED } from '../entries.js'

export interface Comparison {
  readonly layout: GrainLayout
  /** The sectors of the file. */
  readonly fileSectors: number
  /** The highest entry that has a meaning without naming a grain. */
  readonly noGrainMax: number
  readonly sink: GrainSink
}

/** Compares the first `count` tables of the batches that both directories have read. */
export function compareTables(
  first: Directory,
  redundant: Directory,
  count: number,
  comparison: Comparison,
): void {
  const { tableEntries } = comparison.layout
  for (let i = 0; i < count; i++) {
    if (redundant.wanted[i] === UNALLOCATED || first.isSkipped(i)) continue
    if (first.tables.isEqual(redundant.tables, i, tableEntries)) continue
    if (first.wanted[i] === UNALLOCATED) surplus(redundant, i, comparison)
    else disagreement(first, redundant, i, comparison)
  }
}

function surplus(redundant: Directory, i: number, { layout, sink }: Comparison): void {
  const at = redundant.entryAt(i)
  const table = placeOf(redundant, i)
  const message = () =>
    `${redundant.name} names a table at ${table} that is in use, and the first directory none`
  if (layout.isUnclean) sink.surplusTable?.(at, message)
  else sink.corruption(at, message, false)
}

function disagreement(
  first: Directory,
  redundant: Directory,
  i: number,
  comparison: Comparison,
): void {
  const start = i * first.tables.stride
  let differing = 0
  let contradictions = 0
  for (let k = start; k < start + comparison.layout.tableEntries; k++) {
    const said = first.tables.words[k] as number
    const other = redundant.tables.words[k] as number
    if (said === other) continue
    differing++
    if (isContradiction(said, other, comparison)) contradictions++
  }
  const from = placeOf(first, i)
  const message = () =>
    contradictions > 0
      ? `a redundant table contradicts the first one, at ${from}, in ${entries(contradictions)}`
      : `a redundant table is older than the first one, at ${from}, in ${entries(differing)}`
  comparison.sink.disagreement(placeOf(redundant, i), from, contradictions > 0, message)
}

function isContradiction(
  said: number,
  other: number,
  { noGrainMax, fileSectors, layout }: Comparison,
): boolean {
  if (other === UNALLOCATED || other >= fileSectors) return false
  // Instead of a damaged entry readers use the redundant one, also if it means "zeros".
  if (said >= fileSectors) return true
  if (other <= noGrainMax) return false
  return said > noGrainMax || (said === UNALLOCATED && !layout.isUnclean)
}

const placeOf = ({ wanted }: Directory, i: number): number => (wanted[i] as number) * SECTOR_BYTES

const entries = (count: number): string => (count === 1 ? '1 entry' : `${count} entries`)
