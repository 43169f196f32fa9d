/**
 * Clusters inside the file that nothing uses, for new tables of a repair where the file cannot grow: on a
 * block device, or a full disk.
 */
import { SystemError } from '../../../errors.js'
import type { WritableStore } from '../../../io/store.js'
import type { Census } from '../check/census.js'
import { REFERENCES } from '../check/window.js'

/** A fragmented file has more, which a repair hardly needs. */
const MAX_RUNS = 2 ** 16
const CHUNK_BYTES = 2 ** 20
/** What the kernel answers where a file can get no longer, or no fuller. */
const NO_ROOM = new Set(['ENOSPC', 'EDQUOT', 'EFBIG', 'EINVAL'])

interface FreeRun {
  readonly start: number
  readonly length: number
}

/**
 * Makes the file longer, to `toBytes`, and fills what is new with zeros. Returns false where that is not
 * possible; then the file is as long as it was. Throws SystemError for other failures.
 */
export function grow(store: WritableStore, toBytes: number): boolean {
  const before = store.sizeBytes
  if (toBytes <= before) return true
  // A device refuses this, and no byte is written.
  if (!succeeds(() => store.truncate(toBytes))) return false
  if (fillsWithZeros(store, before, toBytes - before)) return true
  store.truncate(before)
  return false
}

/** Free clusters, each handed out once, and zeroed by then, so that later writes find their room. */
export class FreeClusters {
  private readonly runs: FreeRun[]
  private readonly taken = new Set<number>()
  private singles: Generator<number> | undefined
  readonly count: number

  /**
   * @param isKnown whether the tables tell all that is in use; where they do not, only clusters that the
   *   image counts as free are taken, for a lost table may own the others
   */
  constructor(
    private readonly store: WritableStore,
    private readonly census: Census,
    isKnown: boolean,
  ) {
    this.runs = findRuns(store, census, isKnown)
    this.count = this.runs.reduce((sum, { length }) => sum + length, 0)
  }

  /** Where `clusters` free ones in a row begin; undefined where there are none. */
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

  /** A free cluster below `end`; undefined where there is none. */
  takeOne(end: number): number | undefined {
    this.singles ??= this.each()
    // A loop over the generator would end it with the first that is returned.
    for (let next = this.singles.next(); !next.done; next = this.singles.next()) {
      const cluster = next.value
      if (cluster >= end || this.taken.has(cluster)) continue
      if (this.takes(cluster, 1)) return cluster
    }
    return undefined
  }

  /** A full disk may have no room for what is a hole of the file. */
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

/** The runs of free clusters: the one at the end of the file first, where nothing was for long. */
function findRuns(store: WritableStore, census: Census, isKnown: boolean): FreeRun[] {
  const { window, blocks, image } = census
  // A device may end within a cluster, which is no room for a whole one.
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
