/** What the threads of a mount share of a disk that they write. Plain data: it goes as a message. */
import { createPoolMemory, type PoolMemory } from '../cache/table-pool.js'
import type { Store } from '../io/store.js'
import type { LayerSpec } from '../formats/format.js'
import { formatOf } from '../formats/registry.js'
import { filesOf } from './layer.js'
import { createLockMemory } from './disk-lock.js'

export interface DiskMemory {
  readonly lock: SharedArrayBuffer
  readonly counters: SharedArrayBuffer
  /** When the disk was last written. */
  readonly times: SharedArrayBuffer
  /** Why nothing is written any more: its length, and the text. */
  readonly message: SharedArrayBuffer
  /** How many writes were refused that would have changed what a raw image is probed as. */
  readonly refusals: SharedArrayBuffer
  /** The sizes of the image's files, in the order of `filesOf`. */
  readonly sizes: SharedArrayBuffer
  /** Tables that have changed, of formats that have any. */
  readonly pool: PoolMemory | undefined
  /** What the image's format shares. */
  readonly format: unknown
  /** What the user should know before something is written, a line each. */
  readonly warnings: readonly string[]
}

/** What of a layer says how it is written. */
export type WrittenLayer = Pick<
  LayerSpec,
  'fd' | 'sizeBytes' | 'format' | 'spec' | 'dataFile' | 'extents'
>

/** Words of 32 bits; shared-disk.ts says what they count. */
const COUNTERS = 8
const MESSAGE_BYTES = 4 + 2048

/**
 * @param layer the image, opened for writing
 * @param threads how many threads take part, the main thread included
 * @param store the image's file; throws SystemError where it cannot be read
 */
export function createDiskMemory(layer: WrittenLayer, threads: number, store: Store): DiskMemory {
  const files = filesOf(layer)
  const sizes = new SharedArrayBuffer(8 * files.length)
  new BigInt64Array(sizes).set(files.map(({ sizeBytes }) => BigInt(sizeBytes)))
  const { writing } = formatOf(layer)
  const made = writing?.createMemory?.(layer.spec, store)
  return {
    lock: createLockMemory(threads),
    counters: new SharedArrayBuffer(4 * COUNTERS),
    times: new SharedArrayBuffer(8),
    message: new SharedArrayBuffer(MESSAGE_BYTES),
    refusals: new SharedArrayBuffer(4),
    sizes,
    pool: writing?.hasTables ? createPoolMemory() : undefined,
    format: made?.memory,
    warnings: made?.warnings ?? [],
  }
}
