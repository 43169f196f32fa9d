/**
 * A cache of the tables of images, in slices as they are in the file; bounded in bytes.
 *
 * It holds slices, not whole tables, because a random read of a large disk needs 8 bytes of a table of up to 2 MiB.
 * 4 KiB of the L2 table of a standard qcow2 map 32 MiB of the disk.
 */
import { LRUCache } from 'lru-cache'
import { ImageError } from '../errors.js'
import type { Store } from '../io/store.js'
import { STATISTIC } from './statistics.js'
import { SLICE_BYTES, type TablePool } from './table-pool.js'

/** The memory of a slice besides its bytes: its Buffer, its key and its place in the cache. */
const ENTRY_OVERHEAD_BYTES = 320

/** How many evicted slices are kept for reuse; each eviction frees one, each miss takes one. */
const MAX_SPARE = 16

export class MetadataCache {
  private readonly slices: LRUCache<number, Slice>
  /** Evicted slices, for reuse. Without them, random reads would make 400 MB/s of garbage. */
  private readonly spare: Slice[] = []

  /** @param pool the changed tables of store 0, if it is written */
  constructor(
    maxBytes: number,
    private readonly counts: Float64Array,
    private readonly pool?: TablePool,
  ) {
    const maxSize = Math.max(maxBytes, 16 * (SLICE_BYTES + ENTRY_OVERHEAD_BYTES))
    this.slices = new LRUCache<number, Slice>({
      // With `max`, too, the library keeps its links in typed arrays instead of plain ones.
      max: Math.ceil(maxSize / (512 + ENTRY_OVERHEAD_BYTES)),
      maxSize,
      sizeCalculation: slice => slice.bytes.length + ENTRY_OVERHEAD_BYTES,
      dispose: (slice, _key, reason) => {
        if (reason !== 'evict') return
        this.counts[STATISTIC.evictions]!++
        if (slice.bytes.length === SLICE_BYTES && this.spare.length < MAX_SPARE)
          this.spare.push(slice)
      },
    })
  }

  /**
   * Returns `length` bytes of `store` at `at`, a multiple of 512 below 2^53. `storeId`, 0 to 511, tells stores apart. The
   * result is valid until the next call. Throws ImageError if the file ends before the table does: a missing entry must not
   * read as "never written".
   * @param place what to use instead of `at` as the key, for stores that share an id: also a multiple of 512 below 2^53
   */
  slice(store: Store, storeId: number, at: number, length: number, place = at): Buffer {
    const pool = storeId === 0 ? this.pool : undefined
    const changed = pool?.find(place)
    if (changed !== undefined) return changed
    const key = storeId * 2 ** 44 + place / 512
    const version = pool === undefined ? 0 : pool.version(place)
    const cached = this.slices.get(key)
    // An L1 table may be shorter than a slice, and a damaged image may name its place for another table, too.
    if (cached !== undefined && cached.bytes.length >= length && cached.version === version) {
      this.counts[STATISTIC.hits]!++
      return cached.bytes
    }
    this.counts[STATISTIC.misses]!++
    const slice = this.empty(length)
    slice.version = version
    if (store.read(slice.bytes, 0, length, at) < length) {
      throw new ImageError('CORRUPT', `a table at ${at} lies beyond the end of the file`, {
        path: store.path,
      })
    }
    this.slices.set(key, slice)
    this.counts[STATISTIC.bytes] = this.slices.calculatedSize
    return slice.bytes
  }

  private empty(length: number): Slice {
    const spare = length === SLICE_BYTES ? this.spare.pop() : undefined
    return spare ?? { bytes: Buffer.allocUnsafeSlow(length), version: 0 }
  }
}

interface Slice {
  readonly bytes: Buffer
  /** The version that its place in the pool had when it was read. */
  version: number
}
