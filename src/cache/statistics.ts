/**
 * The places of a cache's counts in a Float64Array. Each thread's array lies in shared memory, so that the thread that shows
 * the statistics can read it.
 */
export const STATISTIC = { hits: 0, misses: 1, evictions: 2, bytes: 3 } as const

export const STATISTICS = Object.keys(STATISTIC).length
