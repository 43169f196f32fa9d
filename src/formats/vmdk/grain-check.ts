/**
 * Whether the tables of a hosted sparse or a COWD extent make sense: everything lies in the file, and
 * nothing lies over anything else (VMware, Virtual Disk Format 5.0, "Hosted Sparse Extents", "ESX Server
 * Sparse Extents").
 */
import type { Store } from '../../io/store.js'
import { Inspection } from './check/inspection.js'
import type { GrainLayout } from './layout.js'

/** Places are bytes of the file. */
export interface GrainSink {
  /**
   * Something that costs data, at a place of the file. `isOverlap`: two things lie over each other, so
   * that writing one of them writes the other.
   */
  corruption(at: number, message: () => string, isOverlap: boolean): void
  /**
   * A redundant table at `at` that says something else than the first one at `from`, which is what
   * counts. Called once a table. `isContradiction`: it does not just lag, since both name a grain and
   * different ones; or the first one is damaged where it is not; or, in an extent that was closed cleanly,
   * it alone names a grain.
   */
  disagreement(at: number, from: number, isContradiction: boolean, message: () => string): void
  /**
   * `bytes` at `at` that nothing uses, in ascending order; neighbours are one. What has no room for a
   * grain is left out, and so is what lies among the tables in front, and in a COWD extent what lies
   * behind its next free sector.
   */
  unused?(at: number, bytes: number): void
  /**
   * The entry at `at` of the redundant directory names a table with entries, and the first directory none,
   * in an extent that was not closed cleanly. In others that is a corruption.
   */
  surplusTable?(at: number, message: () => string): void
  /** Called once, last. */
  grains?(totals: GrainTotals): void
}

export interface GrainTotals {
  /** Grains that the tables name. */
  readonly allocated: number
  /** Of those, the ones that do not follow in the file the grain before. */
  readonly fragmented: number
  /** Where in the file the last thing that is used ends, behind its end where that cuts off a grain. */
  readonly endBytes: number
}

export interface InspectOptions {
  /** Memory of the map, a multiple of 4. */
  readonly windowBytes?: number
  /** Told how much is done, 0 to 1. */
  readonly progress?: (part: number) => void
}

/**
 * Looks at the header, the descriptor's place, the directories, the tables and the entries of an extent.
 * Throws SystemError; ImageError where the file becomes shorter meanwhile. What the sink throws passes
 * through.
 */
export function inspectGrains(
  store: Store,
  layout: GrainLayout,
  sink: GrainSink,
  options: InspectOptions = {},
): void {
  if (layout.capacityBytes > 0) new Inspection(store, layout, sink, options).run()
}
