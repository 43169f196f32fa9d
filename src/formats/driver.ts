/** The seam between formats and the engine: a driver says where bytes are and never moves them. */
import type { Store } from '../io/store.js'

/** zlib and zstd: clusters of qcow2. grain: those of vmdk, behind a marker. */
export type Compression = 'zlib' | 'zstd' | 'grain'

/**
 * What the bytes from some offset on are. `length` is in bytes, above 0 and never more than asked.
 *  data: `length` bytes of `store` from `at` on.
 *  zero: zeros, whatever lies below.
 *  parent: this layer is silent here; the layer below has the say, or zeros where there is none.
 *  packed: `length` bytes of what `unpack()` returns, from its byte `skip` on.
 */
export type Extent =
  | { readonly kind: 'data'; readonly length: number; readonly store: Store; readonly at: number }
  | { readonly kind: 'zero'; readonly length: number }
  | { readonly kind: 'parent'; readonly length: number }
  | {
      readonly kind: 'packed'
      readonly length: number
      readonly skip: number
      /** What `unpack` returns, in bytes: a cluster, or a grain. */
      readonly wholeBytes: number
      /** Where the compressed bytes are, for whoever decompresses elsewhere; see unpack-crew.ts. */
      readonly packed: {
        readonly storeId: number
        readonly at: number
        readonly packedBytes: number
        readonly compression: Compression
        /** Of a grain: where it is on its extent's disk, and how much of it has to be there, in bytes. */
        readonly grain?: { readonly offset: number; readonly neededBytes: number }
      }
      /** The cluster, decompressed; it belongs to the cache: do not change it. Throws ImageError. */
      unpack(): Buffer
      /** The same into `target`, which has the cluster's size, and past the cache. */
      unpackInto(target: Buffer): void
    }

export interface FormatDriver {
  /** The size of the disk, in bytes. */
  readonly sizeBytes: number
  /**
   * What a file may end within: bytes missing at the end of a store read as zeros up to the next
   * multiple of this, and are an error beyond. Cluster, grain or 1.
   */
  readonly unitBytes: number
  /**
   * The extent at `offset`, `length` bytes at most; merged as far as the tables at hand allow.
   * `0 <= offset`, `offset + length <= sizeBytes`, `length > 0`. Throws ImageError for damage.
   */
  lookup(offset: number, length: number): Extent
}

/** A disk as one sees it: a driver and what shows through where it is silent. */
export interface View {
  readonly driver: FormatDriver
  readonly parent: View | undefined
}
