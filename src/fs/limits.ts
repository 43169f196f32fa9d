/** The number of threads that serve a mount. */
import { availableParallelism } from 'node:os'

export const DEFAULT_THREADS = Math.max(2, Math.min(4, availableParallelism()))
export const MAX_THREADS = 64
