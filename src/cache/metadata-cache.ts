/**
 * The tables of images, in slices, each as it stands in the file; bounded in bytes.
 *
 * Slices rather than whole tables: a random read of a large disk needs 8 bytes of a table of up to
 * 2 MiB. 4 KiB of a standard qcow2's L2 table map 32 MiB of the disk.
 */
import { LRUCache } from 'lru-cache'
import { ImageError } from '../errors.js'
import type { Store } from '../io/store.js'
import { COUNT } from './counts.js'
import type { TablePool } from './table-pool.js'

/** The size of a slice, and its alignment in the file, in bytes; less where clusters are smaller. */
export const SLICE_BYTES = 4096

/** What a slice costs beyond its bytes: its Buffer, its key and its place in the cache. */
const ENTRY_OVERHEAD_BYTES = 320

/** Evicted slices that wait to be read into; each eviction frees one, each miss takes one. */
const MAX_SPARE = 16

export class MetadataCache {
  private readonly slices: LRUCache<number, Slice>
  /** Evicted slices, read into again: a random read a slice would leave the collector 400 MB/s. */
  private readonly spare: Slice[] = []

  /** @param pool the tables of store 0 that have changed, where it is written */
  constructor(
    maxBytes: number,
    private readonly counts: Float64Array,
    private readonly pool?: TablePool,
  ) {
    const maxSize = Math.max(maxBytes, 16 * (SLICE_BYTES + ENTRY_OVERHEAD_BYTES))
    this.slices = new LRUCache<number, Slice>({
      // With a count, too, the library keeps its links in typed arrays instead of plain ones.
      max: Math.ceil(maxSize / (512 + ENTRY_OVERHEAD_BYTES)),
      maxSize,
      sizeCalculation: slice => slice.bytes.length + ENTRY_OVERHEAD_BYTES,
      dispose: (slice, _key, reason) => {
        if (reason !== 'evict') return
        this.counts[COUNT.evictions]!++
        if (slice.bytes.length === SLICE_BYTES && this.spare.length < MAX_SPARE)
          this.spare.push(slice)
      },
    })
  }

  /**
   * `length` bytes of `store` at `at`, a multiple of 512 below 2^53. `storeId`, 0 to 511, tells
   * stores apart. A table that is cut off by the end of the file is damage, never zeros: an entry
   * that is missing would read as "never written". What is returned is valid until the next call.
   * @param place where that counts as, for stores that share an id: a multiple of 512 below 2^53, too
   */
  slice(store: Store, storeId: number, at: number, length: number, place = at): Buffer {
    const pool = storeId === 0 ? this.pool : undefined
    const changed = pool?.find(place)
    if (changed !== undefined) return changed
    const key = storeId * 2 ** 44 + place / 512
    const version = pool === undefined ? 0 : pool.version(place)
    const cached = this.slices.get(key)
    // An L1 table may be shorter than a slice, and a damaged image name its place for another table.
    if (cached !== undefined && cached.bytes.length >= length && cached.version === version) {
      this.counts[COUNT.hits]!++
      return cached.bytes
    }
    this.counts[COUNT.misses]!++
    const slice = this.empty(length)
    slice.version = version
    if (store.read(slice.bytes, 0, length, at) < length) {
      throw new ImageError('CORRUPT', `a table at ${at} lies beyond the end of the file`, {
        path: store.path,
      })
    }
    this.slices.set(key, slice)
    this.counts[COUNT.bytes] = this.slices.calculatedSize
    return slice.bytes
  }

  private empty(length: number): Slice {
    const spare = length === SLICE_BYTES ? this.spare.pop() : undefined
    return spare ?? { bytes: Buffer.allocUnsafeSlow(length), version: 0 }
  }
}

interface Slice {
  readonly bytes: Buffer
  /** Of its place in the pool, when it was read. */
  version: number
}
