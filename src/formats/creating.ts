/** The seam for new images: the same builder serves `create`, which fills in nothing, and `convert`. */
import type { Store, WritableStore } from '../io/store.js'

/** The files of a new image, which are under temporary names until the image is whole. */
export interface TargetFiles {
  /** The final path of the image's own file. */
  readonly path: string
  readonly main: WritableStore
  /** Makes another file of the image. `name` is relative to the image's folder, or absolute. */
  beside(name: string): WritableStore
}

/** An option of `-o`. */
export interface CreateOption {
  readonly name: string
  /** Its values: on or off, a size in bytes, a whole number, a text, or one of these words. */
  readonly type: 'switch' | 'size' | 'count' | 'text' | readonly string[]
  /** The value if it is not given, as the user would write it; undefined if there is none. */
  readonly default?: string
  /** Its help: one line, without a full stop. */
  readonly help: string
}

/** An option of qemu-img that changes nothing here. */
export const NOCOW: CreateOption = {
  name: 'nocow',
  type: 'switch',
  default: 'off',
  help: "taken for qemu-img's sake; on btrfs, say chattr +C for the folder instead",
}

/** The options that the user gave, by name; sizes and counts are numbers. What was not given is missing. */
export type OptionValues = Readonly<Record<string, boolean | number | string>>

/** The file that the new image stands on. */
export interface BackingTarget {
  /** As the image will name it. */
  readonly name: string
  /** The format's name, or undefined if the image does not state it. */
  readonly format: string | undefined
  /** The size of its disk, in bytes. */
  readonly sizeBytes: number
  /** The content ID of a vmdk. */
  readonly contentId?: number | undefined
}

/** A persistent bitmap, which says what of the disk has changed. */
export interface CopiedBitmap {
  readonly name: Buffer
  /** A bit stands for 2^granularityBits bytes of the disk. */
  readonly granularityBits: number
  /** Whether it records writes. */
  readonly isAuto: boolean
  /** The lowest bit of a byte comes first. */
  readonly bits: Buffer
}

/**
 * Returns the bitmaps of an image. `onBroken` is told the name of each that was not closed, which is left out; without it that
 * throws ImageError, as damage does.
 */
export type CopyBitmaps = (
  store: Store,
  spec: unknown,
  onBroken?: (name: string) => void,
) => readonly CopiedBitmap[]

export interface NewImage {
  readonly files: TargetFiles
  /** The size of the disk, in bytes: a multiple of 512. */
  readonly sizeBytes: number
  readonly options: OptionValues
  readonly backing?: BackingTarget | undefined
  /** For an encrypted image. The caller wipes it. */
  readonly passphrase?: Buffer | undefined
}

/** An image that is only measured. */
export interface MeasuredImage extends Pick<NewImage, 'sizeBytes' | 'options'> {
  /** The ranges that would have data, in ascending order. */
  readonly data: Iterable<{ readonly offset: number; readonly length: number }>
}

/** The figures on which the size of a bitmap depends. */
export interface BitmapShape {
  readonly nameBytes: number
  /** The size of its bits. */
  readonly bitBytes: number
}

/** In bytes of the files of an image. */
export interface Measurement {
  /** With this data. */
  readonly required: number
  /** With data everywhere. */
  readonly fullyAllocated: number
}

export interface FormatCreator {
  readonly options: readonly CreateOption[]
  /** Undefined if the format has no persistent bitmaps. */
  readonly copiedBitmaps?: CopyBitmaps
  /** The option of images with compressed data, where others have none. */
  readonly packedOption?: string
  /** Reports whether these options ask for encryption, for which the image needs a passphrase. */
  isEncrypted?(options: OptionValues): boolean
  /** Returns how large an image may become, as qemu-img measure says it for formats that it measures. Throws UsageError. */
  measure(image: MeasuredImage): Measurement
  /** Returns the bitmaps of an image that `convert` can copy; undefined if it can have none. Throws ImageError. */
  bitmapShapes?(store: Store, spec: unknown): readonly BitmapShape[] | undefined
  /** Returns the space of such bitmaps in an image with these options; undefined if it can have none. */
  measureBitmaps?(options: OptionValues, bitmaps: readonly BitmapShape[]): number | undefined
  /** Begins an image in empty files. Throws UsageError for options that contradict each other, ImageError, SystemError. */
  begin(image: NewImage): Promise<ImageBuilder>
}

export interface FormatCreating {
  load(): Promise<FormatCreator>
}

/** Space for a piece of the disk, in bytes. A store of an encrypted image encrypts what is written to it. */
export interface Place {
  readonly store: WritableStore
  readonly at: number
  readonly length: number
}

/** How units are stored compressed. deflate: without header and checksum; zlib: with both. */
export interface Packing {
  readonly type: 'deflate' | 'zlib' | 'zstd'
  /** A result that is longer is not packed: place the unit instead. */
  readonly maxBytes: number
}

/**
 * A new image that is filled in ascending order of the disk. What is neither placed, packed nor zeroed reads from the backing
 * file, or as zeros. All ranges begin at a multiple of `unitBytes`, and end at one or at the disk's end. All functions throw
 * ImageError where the image would become larger than its format allows, and SystemError.
 */
export interface ImageBuilder {
  /** The unit in which the format allocates, in bytes: a power of two. */
  readonly unitBytes: number
  /** Undefined if units cannot be stored compressed. */
  readonly packing?: Packing | undefined
  /** Whether units can only be stored compressed: then `place` takes none. */
  readonly isPackedOnly?: boolean
  /**
   * Whether the disk's bytes lie in the image's own file, each at its own place, and may also be written there in any order,
   * without `place`.
   */
  readonly isFlat?: boolean
  /** Reserves space for a range, and returns where the caller has to write all of it, in the order of the disk. */
  place(offset: number, length: number): readonly Place[]
  /** Stores one unit, which was compressed as `packing` says; the disk's last unit is padded with zeros before. */
  pack(offset: number, packed: Buffer): void
  /** Makes a range read as zeros, also where the backing file has data. */
  zero(offset: number, length: number): void
  /** Passes over the disk up to `offset`, which is only needed to show progress: what is passed gets its preallocation. */
  skip?(offset: number): void
  /** Gives the image these bitmaps, before `finish`. Undefined if it cannot have any. */
  readonly addBitmaps?: ((bitmaps: readonly CopiedBitmap[]) => void) | undefined
  /** Writes the last tables and the header. After this the image is whole, but not synced. */
  finish(): void
  /**
   * Returns the content of the image's own file if its other files had other names, after `finish`; undefined where that is more
   * than a text. Without it, the images have no other files that could be replaced together with it.
   */
  mainWith?(nameOf: (name: string) => string): Buffer | undefined
}
