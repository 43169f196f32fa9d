/** The unit in which zeros are searched. */

export const MAX_SPARSE_BYTES = 2 * 2 ** 20

/** Returns the unit in which zeros are searched: a power of two that holds whole units of the target. */
export const grainOf = (sparseBytes: number, unitBytes: number): number =>
  Math.max(powerOfTwo(Math.min(Math.max(sparseBytes, 1), MAX_SPARSE_BYTES)), unitBytes)

export const powerOfTwo = (bytes: number): number => 2 ** Math.ceil(Math.log2(bytes))
