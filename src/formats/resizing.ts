/** The seam for changing the size of an image's disk, beyond what its writer can do while the disk is in use. */
import type { FileSpec } from '../io/file-spec.js'
import type { WritableStore } from '../io/store.js'

/** The parts of a layer that decide its size. */
export interface ResizedLayer {
  readonly path: string
  /** The result of the format's `open`. */
  readonly spec: unknown
  readonly dataFile?: FileSpec
}

/** An image that nobody else has open, and whose changes are all flushed. */
export interface ResizedImage {
  readonly layer: ResizedLayer
  readonly store: WritableStore
  storeOf(file: FileSpec): WritableStore
}

/** The part of a grown disk that is allocated at once. */
export type Preallocation = 'off' | 'metadata' | 'falloc' | 'full'

export interface FormatResizer {
  /** Whether the file is the disk: then its size is the disk's, and cutting it off frees all that was there. */
  readonly isPlain: boolean
  readonly preallocations: readonly Preallocation[]
  /** Returns what of a grown disk this image needs allocated at least; 'off' by default. */
  leastPreallocation?(layer: ResizedLayer): Preallocation
  /** Throws ImageError if the disk cannot have `sizeBytes` bytes. Changes nothing. */
  check(layer: ResizedLayer, sizeBytes: number): void
  /** Makes the disk larger, where the writer cannot do that, and syncs it. The new part reads as zeros. */
  grow?(image: ResizedImage, sizeBytes: number): void
  /**
   * Makes the disk smaller, and syncs that. The part that is cut off reads as zeros already, where that is possible. Returns warnings
   * about what was not kept.
   */
  shrink(image: ResizedImage, sizeBytes: number): readonly string[]
  /** Raises the version, where the image's own version cannot have another size. Returns whether it did. */
  upgrade?(image: ResizedImage): boolean
}

export interface FormatResizing {
  load(): Promise<FormatResizer>
}
