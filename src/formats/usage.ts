/** The answer of a format to `vimgfs usage`: where the space of one image went, as its tables say it. No data are read. */
import type { FileSpec } from '../io/file-spec.js'
import type { Store } from '../io/store.js'
import type { DiskMap } from './disk-map.js'

/** All in bytes of the file, in whole units (clusters, grains), each counted once however often it is named. */
export interface Space {
  /** Units with plain data of the disk or of a snapshot. */
  readonly dataBytes: number
  /** Units with compressed data. */
  readonly compressedBytes: number
  /** Units that are allocated, and that the disk and all snapshots would read the same without: they are zeros, or unset. */
  readonly zeroBytes: number
  /** Units of the header and of tables. */
  readonly metadataBytes: number
  /** Units that count as used, and to which nothing refers. */
  readonly leakedBytes: number
  /** Units of the file that are free for what is written next. */
  readonly freeBytes: number
}

/** The space that the compressed data of the disk save. */
export interface Compression {
  readonly units: number
  /** Their size on the disk, and that of their compressed bytes. */
  readonly unpackedBytes: number
  readonly packedBytes: number
}

/** The units of the file that a disk, a snapshot or several of them refer to, tables included. */
export interface Reach {
  readonly referencedBytes: number
  /** Those that nothing else refers to: what deleting it gives back. */
  readonly exclusiveBytes: number
}

export interface SpaceUsage {
  readonly unitBytes: number
  readonly space: Space
  readonly compression: Compression
  /** Bytes of the disk for which this image has data; undefined if its driver has to tell. */
  readonly heldBytes: number | undefined
  /** Undefined for formats without snapshots in their files. */
  readonly disk: Reach | undefined
  /** In the order of the image's table. */
  readonly snapshots: readonly (Reach & UsedSnapshot)[]
  /** The space to which the chosen snapshots refer together. */
  readonly chosen: Reach | undefined
  readonly map: DiskMap | undefined
  /** Why figures are not exact, a clause each. */
  readonly problems: readonly string[]
}

export interface UsedSnapshot {
  readonly id: string
  readonly name: string
}

/** Names a snapshot in the image's table: a damaged table may repeat an ID. */
export interface ChosenSnapshot {
  readonly id: string
  /** The place of its tables in the file, in bytes. */
  readonly offset: number
}

export interface UsageOptions {
  /** The snapshots whose common figures are wanted. */
  readonly chosen: readonly ChosenSnapshot[]
  /** How many cells a map of the disk has; 0 for no map. */
  readonly mapCells: number
  /** Called with the part that is done, 0 to 1. */
  readonly progress?: (part: number) => void
}

export interface UsageImage {
  /** The image's own file. */
  readonly store: Store
  /** The result of the format's `open`. */
  readonly spec: unknown
  storeOf(file: FileSpec): Store
}

export interface FormatUsage {
  /** Returns the function that tells the usage. It throws ImageError where damage leaves nothing to tell, and SystemError. */
  load(): Promise<(image: UsageImage, options: UsageOptions) => SpaceUsage>
}
