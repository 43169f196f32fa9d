/**
 * Where a file has data and where it has holes. It asks the file system about each part of the file once, however the parts
 * are asked for: on some file systems, one question about a long run of data costs time for all of it.
 */
import type { Store } from '../../io/store.js'

/** The file is looked at in parts of this size, in bytes. */
const PART_BYTES = 2 ** 30

/** Runs of data as starts and ends in turns, in ascending order. */
type Runs = number[]

export class FileRuns {
  private readonly parts = new Map<number, Runs>()

  constructor(private readonly store: Pick<Store, 'sizeBytes' | 'nextData' | 'nextHole'>) {}

  /** Reports whether there is data at `at`, and how many bytes from there on, at most `length`, are the same. */
  at(at: number, length: number): { readonly isData: boolean; readonly length: number } {
    const end = at + length
    let isData: boolean | undefined
    let reached = at
    while (reached < end) {
      const part = Math.floor(reached / PART_BYTES)
      const partEnd = (part + 1) * PART_BYTES
      const runs = this.part(part)
      const next = firstAbove(runs, reached)
      const isHere = next % 2 === 1
      isData ??= isHere
      if (isHere !== isData) break
      const until = next < runs.length ? (runs[next] as number) : partEnd
      reached = Math.min(until, end)
      if (until < partEnd) break
    }
    return { isData: isData === true, length: reached - at }
  }

  private part(index: number): Runs {
    const known = this.parts.get(index)
    if (known) return known
    const start = index * PART_BYTES
    const end = start + PART_BYTES
    const runs: Runs = []
    const stop = Math.min(end, this.store.sizeBytes)
    for (let at = start; at < stop; ) {
      const data = this.store.nextData(at)
      if (data < 0 || data >= stop) break
      const hole = this.store.nextHole(data)
      // A file that others write may change between the two questions.
      if (hole <= data) break
      runs.push(data, Math.min(hole, end))
      if (hole > end) this.fill(index + 1, hole)
      at = hole
    }
    this.parts.set(index, runs)
    return runs
  }

  /** Notes that the parts from `index` on are data, as far as they end before `to`. */
  private fill(index: number, to: number): void {
    for (let part = index; (part + 1) * PART_BYTES <= to && !this.parts.has(part); part++) {
      this.parts.set(part, [part * PART_BYTES, (part + 1) * PART_BYTES])
    }
  }
}

/** Returns the index of the first number above `value`, the length if there is none. */
function firstAbove(sorted: readonly number[], value: number): number {
  let low = 0
  let high = sorted.length
  while (low < high) {
    const middle = (low + high) >> 1
    if ((sorted[middle] as number) > value) high = middle
    else low = middle + 1
  }
  return low
}
