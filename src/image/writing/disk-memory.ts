/** The memory that the threads of a mount share for a disk that they write. It can be sent as a message. */
import { createPoolMemory, type PoolMemory } from '../../cache/table-pool.js'
import type { Store } from '../../io/store.js'
import type { LayerSpec } from '../../formats/format.js'
import { formatOf } from '../../formats/registry.js'
import { filesOf } from '../layer.js'
import { createLockMemory } from './disk-lock.js'

export interface DiskMemory {
  readonly lock: SharedArrayBuffer
  readonly counters: SharedArrayBuffer
  /** When the disk was last written. */
  readonly times: SharedArrayBuffer
  /** The reason why nothing is written any more: its length, and the text. */
  readonly message: SharedArrayBuffer
  /** How many writes were refused because they would have changed the format that a raw image is probed as. */
  readonly refusals: SharedArrayBuffer
  /** The sizes of the image's files, in the order of `filesOf`. */
  readonly sizes: SharedArrayBuffer
  /** The changed tables, for formats with tables. */
  readonly pool: PoolMemory | undefined
  /** The shared memory of the image's format. */
  readonly format: unknown
  /** Warnings for the user before anything is written, one line each. */
  readonly warnings: readonly string[]
}

/** The parts of a layer that decide how it is written. */
export type WrittenLayer = Pick<
  LayerSpec,
  'fd' | 'sizeBytes' | 'format' | 'spec' | 'dataFile' | 'extentFiles'
>

/** Words of 32 bits; shared-disk.ts says what they count. */
const COUNTERS = 8
const MESSAGE_BYTES = 4 + 2048

/**
 * @param layer the image, opened for writing
 * @param threads how many threads take part, with the main thread
 * @param store the image's file. Throws SystemError if it cannot be read
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
