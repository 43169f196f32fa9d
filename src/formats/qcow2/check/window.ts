/**
 * Counts the pointers to each host cluster of a part of the file, by kind. The part is as large as memory allows; a larger
 * file is checked part by part.
 */

/** The clusters of a window; each takes four bytes. */
const WINDOW_CLUSTERS = 8 * 2 ** 20

/** The image's count is 1, so the entry must have the COPIED flag. */
export const COUNTED_ONCE = 0x80000000
/** The image's count cannot be read. */
export const UNKNOWN = 0x40000000
/** The cluster holds a structure that shares its clusters with nothing. */
export const EXCLUSIVE = 0x20000000
export const TABLE = 0x10000000
export const DATA = 0x08000000
/** The number of references, up to the largest that fits. */
export const REFERENCES = 0x07ffffff

/** The cells, which all windows use in turn: they take most of the memory. */
export class CellMemory {
  private cells = new Uint32Array(0)

  /** @param limit the most clusters of a window: a power of two, and at least a slice of counts */
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

  /** @param clusters the clusters of the file */
  constructor(
    private readonly clusters: number,
    memory: CellMemory,
  ) {
    this.cells = memory.take(Math.min(clusters, memory.limit))
  }

  get end(): number {
    return this.first + this.length
  }

  /** Starts again with the clusters from `first` on. */
  begin(first: number): void {
    this.first = first
    this.length = Math.min(this.cells.length, this.clusters - first)
    this.cells.fill(0)
  }

  /** Counts `times` references to each cluster that is in the range and in the window. */
  refer(startCluster: number, lastCluster: number, flags: number, times = 1): void {
    const from = Math.max(startCluster, this.first) - this.first
    const to = Math.min(lastCluster, this.end - 1) - this.first
    for (let i = from; i <= to; i++) {
      const cell = this.cells[i] as number
      const references = Math.min(REFERENCES, (cell & REFERENCES) + times)
      this.cells[i] = (cell & ~REFERENCES) | flags | references
    }
  }

  /** Returns the number of references to a cluster of the window. */
  referencesTo(cluster: number): number {
    return (this.cells[cluster - this.first] as number) & REFERENCES
  }
}
