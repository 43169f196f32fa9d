/** Resizes raw images. */
import type { FormatResizer } from '../resizing.js'

export const rawResizer: FormatResizer = {
  isPlain: true,
  preallocations: ['off', 'falloc', 'full'],
  check: () => {},
  shrink: ({ store }, sizeBytes) => {
    store.truncate(sizeBytes)
    store.sync()
    return []
  },
}
