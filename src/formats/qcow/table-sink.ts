/** The findings of an inspection of an image's tables (see inspection.ts). */

/** Places are bytes of the file. */
export interface TableSink {
  /**
   * Reports damage that costs data, at a place of the file. `isOverlap`: two structures overlap, so that writing one changes the
   * other. A compressed cluster that reaches from one window into the next may be reported twice.
   */
  corruption(at: number, message: () => string, isOverlap: boolean): void
  /**
   * Reports that the L1 entry at `at` names the end of the file: its table was never written. It reads as unallocated, but
   * anything appended would lie there.
   */
  unwritten?(at: number, message: () => string): void
  /**
   * Reports `bytes` bytes at `at` that nothing uses, in ascending order and joined. Pieces without room for a cluster are left
   * out.
   */
  unused?(at: number, bytes: number): void
  /** Called once, at the end. */
  totals?(totals: TableTotals): void
}

export interface TableTotals {
  /** How many clusters of the disk have a place in the file. */
  readonly allocated: number
  /** How many of them do not follow the cluster before in the file; compressed ones never do. */
  readonly fragmented: number
  readonly compressed: number
  /**
   * The end of the last structure in use; past the end of the file if that cuts off a cluster, or if a table was never written.
   */
  readonly endBytes: number
}

export interface InspectOptions {
  /** The memory of each of the two maps, a multiple of 4. */
  readonly windowBytes?: number
  /** Called with the part that is done, 0 to 1. */
  readonly progress?: (part: number) => void
}
