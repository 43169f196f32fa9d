/**
 * Finds clusters inside the file that nothing uses, for new tables of a repair if the file cannot grow: on a block device or a
 * full disk.
 */
import { SystemError } from '../../../errors.js'
import type { WritableStore } from '../../../io/store.js'
import type { Census } from '../check/census.js'
import { REFERENCES } from '../check/window.js'

/** The most runs. A fragmented file may have more, but a repair hardly needs them. */
const MAX_RUNS = 2 ** 16
const CHUNK_BYTES = 2 ** 20
/** The errors for a file that cannot become longer, or take more space. */
const NO_ROOM = new Set(['ENOSPC', 'EDQUOT', 'EFBIG', 'EINVAL'])

interface FreeRun {
  readonly start: number
  readonly length: number
}

/**
 * Makes the file `toBytes` long, and fills the new part with zeros. Returns false if that is not possible; then the file is as
 * long as before. Throws SystemError for other failures.
 */
export function grow(store: WritableStore, toBytes: number): boolean {
  const before = store.sizeBytes
  if (toBytes <= before) return true
  // A device refuses this before a byte is written.
  if (!succeeds(() => store.truncate(toBytes))) return false
  if (fillsWithZeros(store, before, toBytes - before)) return true
  store.truncate(before)
  return false
}

/** Hands out free clusters, each once. They are zeroed first, so that later writes do not lack space. */
export class FreeClusters {
  private readonly runs: FreeRun[]
  private readonly taken = new Set<number>()
  private singles: Generator<number> | undefined
  readonly count: number

  /**
   * @param isKnown whether the tables name all clusters in use. If not, only clusters with the count 0 are taken, because a lost
   *   table may own the others
   */
  constructor(
    private readonly store: WritableStore,
    private readonly census: Census,
    isKnown: boolean,
  ) {
    this.runs = findRuns(store, census, isKnown)
    this.count = this.runs.reduce((sum, { length }) => sum + length, 0)
  }

  /** Returns the first of `clusters` free clusters in a row; undefined if there are none. */
  takeRow(clusters: number): number | undefined {
    for (const isHole of [false, true]) {
      for (const { start, length } of this.runs) {
        for (let from = start; from + clusters <= start + length; from += clusters) {
          if (isHole !== this.isHole(from) || !this.takes(from, clusters)) continue
          return from
        }
      }
    }
    return undefined
  }

  /** Returns a free cluster below `end`; undefined if there is none. */
  takeOne(end: number): number | undefined {
    this.singles ??= this.each()
    // Not a for-of loop: returning from it would end the generator.
    for (let next = this.singles.next(); !next.done; next = this.singles.next()) {
      const cluster = next.value
      if (cluster >= end || this.taken.has(cluster)) continue
      if (this.takes(cluster, 1)) return cluster
    }
    return undefined
  }

  /** Yields free clusters. A full disk may have no space for one that is a hole of the file. */
  private *each(): Generator<number> {
    for (const isHole of [false, true]) {
      for (const { start, length } of this.runs) {
        for (let i = start; i < start + length; i++) if (isHole === this.isHole(i)) yield i
      }
    }
  }

  private isHole(cluster: number): boolean {
    const at = cluster * this.census.image.clusterBytes
    return this.store.nextData(at) !== at
  }

  private takes(cluster: number, clusters: number): boolean {
    const { clusterBytes } = this.census.image
    for (let i = 0; i < clusters; i++) if (this.taken.has(cluster + i)) return false
    const [at, bytes] = [cluster * clusterBytes, clusters * clusterBytes]
    if (!fillsWithZeros(this.store, at, bytes)) return false
    for (let i = 0; i < clusters; i++) this.taken.add(cluster + i)
    return true
  }
}

/** Returns the runs of free clusters, the one at the end of the file first: it has been unused for longest. */
function findRuns(store: WritableStore, census: Census, isKnown: boolean): FreeRun[] {
  const { window, blocks, image } = census
  // A device may end within a cluster: leave that one out.
  const whole = Math.floor(store.sizeBytes / image.clusterBytes)
  const runs: FreeRun[] = []
  let start = 0
  let length = 0
  const end = () => {
    if (length > 0 && runs.length < MAX_RUNS) runs.push({ start, length })
    length = 0
  }
  census.run(undefined, () => {
    for (let from = window.first; from < Math.min(window.end, whole); from += blocks.perSlice) {
      const slice = isKnown || blocks.placeOf(from) === 0 ? undefined : blocks.slice(from)
      const stop = Math.min(window.end, whole, from + blocks.perSlice)
      for (let cluster = from; cluster < stop; cluster++) {
        const isUnused = ((window.cells[cluster - window.first] as number) & REFERENCES) === 0
        const isFree = isUnused && (isKnown || (slice && blocks.read(slice, cluster - from) === 0))
        if (!isFree) end()
        else if (length++ === 0) start = cluster
      }
    }
  })
  if (length > 0) return [{ start, length }, ...runs]
  return runs
}

function fillsWithZeros(store: WritableStore, at: number, bytes: number): boolean {
  const zeros = Buffer.alloc(Math.min(CHUNK_BYTES, bytes))
  return succeeds(() => {
    for (let done = 0; done < bytes; done += zeros.length) {
      store.write(zeros, 0, Math.min(zeros.length, bytes - done), at + done)
    }
  })
}

function succeeds(act: () => void): boolean {
  try {
    act()
    return true
  } catch (error) {
    if (error instanceof SystemError && NO_ROOM.has(error.code)) return false
    throw error
  }
}
