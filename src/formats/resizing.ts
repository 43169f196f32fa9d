/** The seam for changing the size of an image's disk, beyond what its writer can do while the disk is in use. */
import type { FileSpec } from '../io/file-spec.js'
import type { WritableStore } from '../io/store.js'
import type { LayerSpec } from './format.js'

/** An image that nobody else has open, and whose own changes are all flushed. */
export interface ResizedImage<S = unknown> {
  readonly layer: LayerSpec<S>
  readonly store: WritableStore
  storeOf(file: FileSpec): WritableStore
}

export interface FormatResizer<S = unknown> {
  /** Throws ImageError if the disk cannot have `sizeBytes` bytes. Changes nothing. */
  check(layer: LayerSpec<S>, sizeBytes: number): void
  /**
   * Makes the disk larger, where the writer cannot do that. The new part must read as zeros but for the rest of the unit that
   * the old end lies in, which the caller zeroes afterwards.
   */
  grow?(image: ResizedImage<S>, sizeBytes: number): void
  /** Makes the disk smaller. What is cut off reads as zeros already. */
  shrink(image: ResizedImage<S>, sizeBytes: number): void
  /** Raises the version, where an older one cannot have another size. Returns whether it did. */
  upgrade?(image: ResizedImage<S>): boolean
}

export interface FormatResizing<S = unknown> {
  load(): Promise<FormatResizer<S>>
}
