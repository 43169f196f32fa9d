/** Functions of the library that open images by their names, work through their disks, and close them. */
import path from 'node:path'
import type { OptionValues } from '../formats/creating.js'
import { type CompareOptions, type Compared, compareDisks } from './comparing/compare.js'
import { baseNamed } from './convert/base.js'
import { convertToNew, type Watching } from './convert/convert.js'
import { type SnapshotChoice, splitImageName } from './reading/image-name.js'
import { type OpenImageOptions, askFrom } from './open-image.js'
import { type Source, SourceImage } from './reading/source.js'

/** How an image is opened for reading. */
export interface ReadImageOptions
  extends Pick<OpenImageOptions, 'format' | 'allowPaths' | 'ignoreCid' | 'passphrase'> {
  /** Whether to read it also while others write it: what is read may be torn. */
  readonly forceShare?: boolean
  /** The snapshot to read; by default the tag in IMAGE@TAG, or the image's own disk. */
  readonly snapshot?: SnapshotChoice
}

export interface ConvertImageOptions extends ReadImageOptions {
  /** The format of the new image; raw is the default. */
  readonly targetFormat?: string
  /** Options of the new image, as for `createImage`. */
  readonly options?: OptionValues
  /** Whether its data are compressed. */
  readonly compress?: boolean
  /** The image that the new one stands on: it then stores only what differs. `name` starts from the new image's folder. */
  readonly base?: { readonly name: string; readonly format?: string }
  /** Runs of so many zeros are not stored, in bytes; 0 stores all. 4096 is the default. */
  readonly sparseBytes?: number
  /** Whether files that exist already may be replaced. */
  readonly force?: boolean
  /** Of an encrypted new image. */
  readonly targetPassphrase?: string
  /** Called with how much of the disk is done, and with its size, in bytes. */
  readonly onProgress?: (done: number, total: number) => void
  /** Is told of what cannot be read, which becomes zeros; without it that is an error. */
  readonly onLoss?: Watching['onLoss']
  /** Ends the work with its reason. */
  readonly signal?: AbortSignal
}

const SPARSE_BYTES = 4096

/**
 * Makes the new image `target` with the disk of `name`, which is IMAGE or IMAGE@TAG. It appears when it is whole. Throws
 * UsageError, ImageError, SystemError; then nothing has changed.
 */
export async function convertImage(
  name: string,
  target: string,
  options: ConvertImageOptions = {},
): Promise<void> {
  const { base, targetPassphrase, onProgress, onLoss, signal } = options
  const source = await openNamed(name, options)
  let below: Source | undefined
  try {
    if (base) {
      const { format: _, snapshot: __, ...open } = options
      const stated = base.format === undefined ? open : { ...open, format: base.format }
      below = await openNamed(path.resolve(path.dirname(target), base.name), stated)
    }
    const passphrase = targetPassphrase === undefined ? undefined : Buffer.from(targetPassphrase)
    try {
      await convertToNew(
        source,
        {
          path: target,
          format: options.targetFormat ?? 'raw',
          options: options.options ?? {},
          isPacked: options.compress === true,
          sparseBytes: options.sparseBytes ?? SPARSE_BYTES,
          base: base && below && baseNamed(base.name, below),
          force: options.force === true,
          passphrase,
        },
        { onProgress: done => onProgress?.(done, source.sizeBytes), onLoss, signal },
      )
    } finally {
      passphrase?.fill(0)
    }
  } finally {
    below?.close()
    source.close()
  }
}

export interface CompareImagesOptions extends ReadImageOptions {
  /** How the second image is opened, where that differs. */
  readonly second?: ReadImageOptions
  /** Whether sizes have to be equal, and what is data, what zeros and what unallocated. */
  readonly isStrict?: boolean
  readonly progress?: CompareOptions['progress']
}

/** Compares two disks, each IMAGE or IMAGE@TAG, as `vimgfs compare` does. Throws ImageError if one cannot be opened. */
export async function compareImages(
  first: string,
  second: string,
  options: CompareImagesOptions = {},
): Promise<Compared> {
  const { isStrict = false, progress, second: other, ...open } = options
  const a = await openNamed(first, open)
  try {
    const { snapshot: _, format: __, ...shared } = open
    const b = await openNamed(second, { ...shared, ...other })
    try {
      return await compareDisks(a, b, { isStrict, ...(progress && { progress }) })
    } finally {
      b.close()
    }
  } finally {
    a.close()
  }
}

/** Opens a disk by its name. Throws ImageError, and then leaves nothing open. */
async function openNamed(name: string, options: ReadImageOptions): Promise<Source> {
  const { passphrase, forceShare = false, snapshot, ...open } = options
  const { image, tag } = splitImageName(name)
  const ask = askFrom(passphrase)
  const opened = await SourceImage.open(image, { ...open, takesLocks: !forceShare, ask })
  try {
    return opened.disk(snapshot ?? tag, () => opened.close())
  } catch (error) {
    opened.close()
    throw error
  }
}
