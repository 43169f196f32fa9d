/** The two actions on a gap that a handle which truncated a file leaves behind (truncations.ts). */
export interface GapActions {
  /** Makes a range of the disk read as zeros. */
  zero(offset: number, length: number): void
  /**
   * Makes the kernel drop the cached pages of a range of the disk. Returns when they are gone; with `isLocked` it returns at
   * once, because the current request holds their locks.
   */
  dropPages(offset: number, length: number, isLocked: boolean): void
}

const PAGE_BYTES = 4096

/** Drops pages of a gap. A write through the page cache holds the page in which it begins until it is answered. */
export function dropBetween(from: number, to: number, isWrite: boolean, actions: GapActions): void {
  const border = isWrite ? Math.max(from, to - (to % PAGE_BYTES)) : to
  if (border > from) actions.dropPages(from, border - from, false)
  if (to > border) actions.dropPages(border, to - border, true)
}
