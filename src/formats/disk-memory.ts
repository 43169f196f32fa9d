/** What the threads of a mount share of a disk that they write. Plain data: it goes as a message. */
import type { Store } from '../io/store.js'
import type { LayerSpec } from './chain.js'
import { createLockMemory } from './disk-lock.js'
import { createQcow2Memory, type Qcow2Memory } from './qcow2/write-memory.js'
import { COUNTERS } from './shared-disk.js'

export interface DiskMemory {
  readonly lock: SharedArrayBuffer
  readonly counters: SharedArrayBuffer
  /** When the disk was last written. */
  readonly times: SharedArrayBuffer
  /** Why nothing is written any more: its length, and the text. */
  readonly message: SharedArrayBuffer
  /** The sizes of the image's file and of its external data file. */
  readonly sizes: SharedArrayBuffer
  readonly qcow2: Qcow2Memory | undefined
  /** What the user should know before something is written, a line each. */
  readonly warnings: readonly string[]
}

const MESSAGE_BYTES = 4 + 2048

/**
 * @param layer the image, opened for writing
 * @param threads how many threads take part, the main thread included
 * @param store the image's file; throws SystemError where it cannot be read
 */
export function createDiskMemory(
  layer: Pick<LayerSpec, 'sizeBytes' | 'qcow2' | 'dataFile'>,
  threads: number,
  store: Store,
): DiskMemory {
  const sizes = new SharedArrayBuffer(16)
  new BigInt64Array(sizes).set([BigInt(layer.sizeBytes), BigInt(layer.dataFile?.sizeBytes ?? 0)])
  const qcow2 = layer.qcow2 && createQcow2Memory(layer.qcow2, store)
  return {
    lock: createLockMemory(threads),
    counters: new SharedArrayBuffer(4 * COUNTERS),
    times: new SharedArrayBuffer(8),
    message: new SharedArrayBuffer(MESSAGE_BYTES),
    sizes,
    qcow2,
    warnings: qcow2?.bitmaps.warnings ?? [],
  }
}
