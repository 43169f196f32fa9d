/** Finds the ranges that have changed between two states of a disk. */
import { differingRuns } from './bytes.js'
import { pairsOf } from './pair.js'
import type { Source } from '../reading/source.js'

export interface Range {
  readonly start: number
  readonly length: number
}

/** How much is compared at once, in bytes. */
const PIECE_BYTES = 2 ** 20

export interface DiffOptions {
  /** Whether to read and compare what the tables do not show to be equal. */
  readonly isExact?: boolean
  /** Told how far it has come, in bytes of the disk. */
  readonly progress?: (done: number) => void
}

/**
 * Yields the ranges in which `after` may differ from `before`, in order. Without `isExact` that is all that does not come from
 * the same place of a file. What only one of them has, because its disk is larger, counts as changed. Throws ImageError.
 */
export function* changesOf(
  before: Source,
  after: Source,
  options: DiffOptions = {},
): Generator<Range> {
  const common = Math.min(before.sizeBytes, after.sizeBytes)
  const whole = Math.max(before.sizeBytes, after.sizeBytes)
  let last: Range | undefined
  for (const range of changed(before, after, common, options)) {
    if (last && last.start + last.length === range.start) {
      last = { start: last.start, length: last.length + range.length }
    } else {
      if (last) yield last
      last = range
    }
  }
  if (whole > common) {
    const isNext = last && last.start + last.length === common
    if (last && !isNext) yield last
    const start = last && isNext ? last.start : common
    last = { start, length: whole - start }
  }
  if (last) yield last
}

function* changed(
  before: Source,
  after: Source,
  length: number,
  { isExact = false, progress = () => {} }: DiffOptions,
): Generator<Range> {
  const buffers = isExact ? [Buffer.alloc(PIECE_BYTES), Buffer.alloc(PIECE_BYTES)] : []
  const [one, other] = buffers as [Buffer, Buffer]
  for (const pair of pairsOf(before, after, length)) {
    const { offset: start, length: bytes } = pair
    progress(start)
    if (pair.isSame) continue
    if (!isExact) {
      yield { start, length: bytes }
      continue
    }
    for (let at = start; at < start + bytes; at += PIECE_BYTES) {
      const piece = Math.min(PIECE_BYTES, start + bytes - at)
      before.read(one, 0, piece, at)
      after.read(other, 0, piece, at)
      progress(at + piece)
      for (const run of differingRuns(one, other, piece)) {
        yield { start: at + run.start, length: run.length }
      }
    }
  }
}
