/**
 * What a cache counts, as places in a Float64Array: that of a thread lies in shared memory, where the
 * thread that shows the statistics reads it.
 */
export const COUNT = { hits: 0, misses: 1, evictions: 2, bytes: 3 } as const

export const COUNTS = Object.keys(COUNT).length
