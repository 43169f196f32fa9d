/** An image that one thread writes, without FUSE and without the library's objects. */
import type { LayerSpec } from '../../formats/format.js'
import type { WritableDisk } from '../../formats/writable.js'
import { createDiskMemory } from './disk-memory.js'
import { ViewSet } from '../reading/view-set.js'
import { OPENED_FILES } from '../opening/store-source.js'

export const SINGLE_THREAD_CACHES = { metadataBytes: 4 * 2 ** 20, clusterBytes: 8 * 2 ** 20 }

export interface WrittenSet {
  readonly set: ViewSet
  /** Close it: that flushes. */
  readonly disk: WritableDisk
  readonly warnings: readonly string[]
}

/** Opens the first of `layers` for writing; its files are open for that, and it is unlocked and recovered. */
export function openWrittenSet(layers: readonly [LayerSpec, ...LayerSpec[]]): WrittenSet {
  const [top] = layers
  const memory = createDiskMemory(top, 1, OPENED_FILES.readable(top))
  const set = new ViewSet(layers, SINGLE_THREAD_CACHES, undefined, { memory, thread: 0 })
  return { set, disk: set.disk as WritableDisk, warnings: memory.warnings }
}
