/**
 * How often each host cluster of a part of the file is pointed at, and by what. The part is as large as
 * memory allows; a larger file is gone over part by part.
 */

/** Four bytes each. */
const WINDOW_CLUSTERS = 8 * 2 ** 20

/** The image counts one reference to the cluster: the COPIED flag belongs to its entry. */
export const COUNTED_ONCE = 0x80000000
/** What the image counts cannot be read. */
export const UNKNOWN = 0x40000000
/** Something is there that shares its clusters with nothing. */
export const EXCLUSIVE = 0x20000000
export const TABLE = 0x10000000
export const DATA = 0x08000000
/** References, up to as many as fit. */
export const REFERENCES = 0x07ffffff

/** The cells, for one window after the other: they take most of the memory. */
export class CellMemory {
  private cells = new Uint32Array(0)

  /** @param limit clusters of a window at most: a power of two, and not less than a slice of counts */
  constructor(readonly limit = WINDOW_CLUSTERS) {}

  take(length: number): Uint32Array {
    if (this.cells.length < length) this.cells = new Uint32Array(length)
    return this.cells.subarray(0, length)
  }
}

export class Window {
  /** The first cluster. */
  first = 0
  length = 0
  readonly cells: Uint32Array

  /** @param clusters of the file */
  constructor(
    private readonly clusters: number,
    memory: CellMemory,
  ) {
    this.cells = memory.take(Math.min(clusters, memory.limit))
  }

  get end(): number {
    return this.first + this.length
  }

  /** Begins again with the clusters from `first` on. */
  begin(first: number): void {
    this.first = first
    this.length = Math.min(this.cells.length, this.clusters - first)
    this.cells.fill(0)
  }

  /** Counts `times` references to each cluster that the range touches and the window has. */
  refer(startCluster: number, lastCluster: number, flags: number, times = 1): void {
    const from = Math.max(startCluster, this.first) - this.first
    const to = Math.min(lastCluster, this.end - 1) - this.first
    for (let i = from; i <= to; i++) {
      const cell = this.cells[i] as number
      const references = Math.min(REFERENCES, (cell & REFERENCES) + times)
      this.cells[i] = (cell & ~REFERENCES) | flags | references
    }
  }

  /** References to a cluster of the window. */
  referencesTo(cluster: number): number {
    return (this.cells[cluster - this.first] as number) & REFERENCES
  }
}
