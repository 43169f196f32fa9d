/** The seam between formats and the engine: a driver says where bytes are and never moves them. */
import type { Store } from '../io/store.js'

/** A packed extent as another thread decompresses it, with the format's `unpack`. */
export interface PackedJob {
  /** The name of the format. */
  readonly format: string
  /** The number of the store with the compressed bytes. */
  readonly storeId: number
  /** At most 4 whole numbers from 0 to 2^53 - 1, whose meaning the format knows. */
  readonly numbers: readonly number[]
}

/** Where the compressed bytes of a packed extent lie, for those who read and decompress many at once. */
export interface PackedPlace {
  /** In the store of the job. */
  readonly at: number
  readonly length: number
  /** Returns the stream in these bytes; undefined if only the format's `unpack` can tell what they are. */
  streamOf(bytes: Buffer): PackedStream | undefined
}

export interface PackedStream {
  readonly type: 'deflate' | 'zlib' | 'zstd'
  readonly bytes: Buffer
  /** The least that it has to make, in bytes; zeros follow. */
  readonly neededBytes: number
}

/**
 * The answer of `lookup`: what the bytes from an offset on are. `length` is in bytes, above 0 and never more than asked for.
 *  data: `length` bytes of `store` from `at` on.
 *  zero: zeros, whatever the lower layers have.
 *  parent: unallocated here: read the layer below, or zeros if there is none.
 *  packed: `length` bytes of the result of `unpack()`, from its byte `skip` on.
 */
export type Extent =
  | { readonly kind: 'data'; readonly length: number; readonly store: Store; readonly at: number }
  | { readonly kind: 'zero'; readonly length: number }
  | { readonly kind: 'parent'; readonly length: number }
  | {
      readonly kind: 'packed'
      readonly length: number
      readonly skip: number
      /** The size of the result of `unpack`, in bytes: a cluster, or a grain. */
      readonly wholeBytes: number
      readonly job: PackedJob
      /** Returns the decompressed cluster. It belongs to the cache: do not change it. Throws ImageError. */
      unpack(): Buffer
      /** Decompresses into `target`, which must have the cluster's size, and bypasses the cache. */
      unpackInto(target: Buffer): void
    }

export interface FormatDriver {
  /** The size of the disk, in bytes. */
  readonly sizeBytes: number
  /**
   * The unit within which a file may end: a cluster, a grain or 1. Bytes that are missing at the end of a store read as zeros up
   * to the next multiple of this, and are an error after it.
   */
  readonly unitBytes: number
  /**
   * Returns the extent at `offset`, at most `length` bytes long, merged as far as the tables that it has read allow.
   * `0 <= offset`, `offset + length <= sizeBytes`, `length > 0`. Throws ImageError for damage.
   */
  lookup(offset: number, length: number): Extent
}

/** A disk as programs see it: a driver, and the view that is read where the driver has nothing allocated. */
export interface View {
  readonly driver: FormatDriver
  readonly parent: View | undefined
}
