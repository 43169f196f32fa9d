/** Gets the findings of inspecting an extent's tables (see grain-check.ts). */

/** Places are bytes of the file. */
export interface GrainSink {
  /**
   * Reports damage that costs data, at a place of the file. `isOverlap`: two structures overlap, so that writing one changes the
   * other.
   */
  corruption(at: number, message: () => string, isOverlap: boolean): void
  /**
   * Reports a redundant table at `at` that differs from the first one at `from`, which counts. Called once for each table.
   * `isContradiction`: it is not just older, because the two name different grains; or the first one is damaged where it is
   * not; or, in an extent that was closed cleanly, it alone names a grain.
   */
  disagreement(at: number, from: number, isContradiction: boolean, message: () => string): void
  /**
   * Reports `bytes` bytes at `at` that nothing uses, in ascending order and joined. It leaves out pieces without room for a
   * grain, pieces among the tables at the beginning, and in a COWD extent everything after its next free sector.
   */
  unused?(at: number, bytes: number): void
  /**
   * Reports that the entry at `at` of the redundant directory names a table with entries and the first directory names none, in
   * an extent that was not closed cleanly. In other extents that is a corruption.
   */
  surplusTable?(at: number, message: () => string): void
  /** Called once, at the end. */
  grains?(totals: GrainTotals): void
}

export interface GrainTotals {
  /** The number of grains that the tables name. */
  readonly allocated: number
  /** How many of them do not follow the grain before in the file. */
  readonly fragmented: number
  /** The end of the last structure in use; past the end of the file if that cuts off a grain. */
  readonly endBytes: number
}

export interface InspectOptions {
  /** The memory of the map, a multiple of 4. */
  readonly windowBytes?: number
  /** Called with the part that is done, 0 to 1. */
  readonly progress?: (part: number) => void
}
