/** Makes a new image that is empty, or stands on a backing file. */
import path from 'node:path'
import { UsageError } from '../../errors.js'
import type { BackingTarget, ImageBuilder, OptionValues } from '../../formats/creating.js'
import { formatOf } from '../../formats/registry.js'
import type { FileSpec } from '../../io/file-spec.js'
import { closeChain } from '../opening/chain.js'
import { diskBytes, filesFrom } from '../layer.js'
import { unlessMounted } from '../opening/mounted.js'
import { beginImage, creatorOf, targetOf } from './new-image.js'
import { NewFiles } from './new-files.js'
import { openChain } from '../opening/open-chain.js'
import { requireOwnFile } from '../opening/archive.js'

export interface CreateImageOptions {
  /** The format's name; raw is the default. */
  readonly format?: string | undefined
  /** The disk's size; by default that of the backing file's disk. It is rounded up to 512. */
  readonly sizeBytes?: number | undefined
  /** The format's options: sizes and counts are numbers, switches booleans, the rest texts. */
  readonly options?: OptionValues
  readonly backing?: NewBacking | undefined
  /** Of an image that is encrypted. */
  readonly passphrase?: string | Buffer | undefined
  /** Whether files that exist already may be replaced. */
  readonly force?: boolean
  /** Folders besides its own in which the backing file may name files. */
  readonly allowPaths?: readonly string[]
  /** Told how much of the disk is allocated, in bytes, where that takes time. */
  readonly onProgress?: (done: number, total: number) => void
}

export interface NewBacking {
  /** As the new image names it: a path relative to the image's folder, or an absolute one. */
  readonly name: string
  /** Its format; by default it is found by its first bytes. */
  readonly format?: string | undefined
  /** Whether to name the file without looking at it. Then the size must be given. */
  readonly isUnseen?: boolean
}

/** How much of the disk is allocated at once, so that progress shows, and how often at most. */
const STEP_BYTES = 256 * 2 ** 20
const STEPS = 4096

/** Makes the image at `file`. Throws UsageError, ImageError, SystemError, and then leaves nothing behind. */
export async function createImage(file: string, request: CreateImageOptions = {}): Promise<void> {
  const { format = 'raw', options = {}, passphrase, force = false } = request
  // Before anything is opened: most mistakes are here.
  await creatorOf(format)
  const backing = request.backing && openBacking(file, request.backing, request.allowPaths ?? [])
  try {
    const sizeBytes = request.sizeBytes ?? backing?.target.sizeBytes
    if (sizeBytes === undefined || Number.isNaN(sizeBytes)) {
      throw new UsageError('SIZE is missing: the size of the disk, such as 20G')
    }
    const target = backing && sized(backing.target, sizeBytes)
    const files = new NewFiles(file, { force, sources: backing?.files ?? [] })
    try {
      const secret = typeof passphrase === 'string' ? Buffer.from(passphrase) : passphrase
      const image = { format, sizeBytes, options, backing: target, passphrase: secret }
      const builder = await beginImage(targetOf(files), image)
      await allocate(builder, sizeBytes, request.onProgress)
      builder.finish()
      files.commit(builder.mainWith?.bind(builder))
    } catch (error) {
      files.discard()
      throw error
    }
  } finally {
    backing?.close()
  }
}

/** A backing file that is not looked at may be as large as the new disk. */
const sized = (target: BackingTarget, sizeBytes: number): BackingTarget =>
  Number.isNaN(target.sizeBytes) ? { ...target, sizeBytes } : target

async function allocate(
  builder: ImageBuilder,
  sizeBytes: number,
  onProgress: CreateImageOptions['onProgress'],
): Promise<void> {
  if (!builder.skip || !onProgress) return
  const least = Math.max(STEP_BYTES, builder.unitBytes)
  const step = least * Math.ceil(sizeBytes / least / STEPS)
  for (let offset = step; offset < sizeBytes; offset += step) {
    builder.skip(offset)
    onProgress(offset, sizeBytes)
    // Signals are only taken between turns.
    await new Promise(setImmediate)
  }
}

export interface OpenedBacking {
  readonly target: BackingTarget
  /** The files that its disk consists of: they must not be replaced. */
  readonly files: readonly FileSpec[]
  close(): void
}

/** Opens the file that the new image at `file` is to stand on. Throws ImageError. */
export function openBacking(
  file: string,
  { name, format, isUnseen = false }: NewBacking,
  allowPaths: readonly string[],
): OpenedBacking {
  if (isUnseen) {
    return { target: { name, format, sizeBytes: Number.NaN }, files: [], close: () => {} }
  }
  const full = path.resolve(path.dirname(file), name)
  const chain = unlessMounted(() => openChain(full, { format, allowPaths, takesLocks: true }))
  const [top] = chain.layers
  try {
    requireOwnFile(top)
  } catch (error) {
    closeChain(chain)
    throw error
  }
  return {
    target: {
      name,
      format: top.format,
      sizeBytes: diskBytes(top),
      contentId: formatOf(top).contentId?.(top),
    },
    files: filesFrom(chain.layers, 0),
    close: () => closeChain(chain),
  }
}
