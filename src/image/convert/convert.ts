/** Converts a disk into a new image, or into one that exists. */
import fs from 'node:fs'
import { ImageError, UsageError } from '../../errors.js'
import type {
  BackingTarget,
  CopiedBitmap,
  ImageBuilder,
  OptionValues,
} from '../../formats/creating.js'
import type { FileSpec } from '../../io/file-spec.js'
import { beginImage, creatorOf, targetOf } from '../making/new-image.js'
import { NewFiles } from '../making/new-files.js'
import type { ImageDisk } from '../open-image.js'
import type { Source } from '../reading/source.js'
import type { OnLoss } from '../reading/walk-layers.js'
import { BuilderSink } from './builder-sink.js'
import { mayBeCloned } from './cloner.js'
import { copyDirectly, hasPacked } from './direct-copy.js'
import { copyDisk } from './copy-disk.js'
import { DiskSink } from './disk-sink.js'
import type { ConvertSource } from './joined-disk.js'
import { openUnnamed } from './unnamed-image.js'
import { VerifyingSink } from './verifying-sink.js'

const SECTOR_BYTES = 512

export interface Watching {
  /** Called with how far the disk is done, in bytes. */
  readonly onProgress?: ((offset: number) => void) | undefined
  /** Is told of what cannot be read, which becomes zeros; without it that is an error. */
  readonly onLoss?: OnLoss | undefined
  /** Ends the work with its reason. */
  readonly signal?: AbortSignal | undefined
}

export interface NewTarget {
  /** The path of the new image. */
  readonly path: string
  readonly format: string
  readonly options: OptionValues
  /** Whether its units are compressed. */
  readonly isPacked: boolean
  /** Runs of so many zeros and more are not stored; 0: all is allocated. */
  readonly sparseBytes: number
  /** The base of the new image, with the disk that the base shows. */
  readonly base?: { readonly target: BackingTarget; readonly source: Source } | undefined
  /** Whether files that exist may be replaced. */
  readonly force: boolean
  /** For an encrypted image. */
  readonly passphrase?: Buffer | undefined
  /** Returns the bitmaps that the image gets. */
  readonly bitmaps?: () => Promise<readonly CopiedBitmap[]>
  /** Whether the image is read again and compared before it gets its name. */
  readonly isVerified?: boolean
}

/**
 * Makes a new image with the disk of `source`. Throws ImageError, SystemError, UsageError; then no file has changed, and
 * nothing is left.
 */
export async function convertToNew(
  source: ConvertSource,
  target: NewTarget,
  { onProgress, onLoss, signal }: Watching = {},
): Promise<void> {
  const { path, format, options, isPacked, base, force, passphrase, sparseBytes } = target
  const sources = [...source.files, ...(base?.source.files ?? [])]
  const sizeBytes = Math.ceil(source.sizeBytes / SECTOR_BYTES) * SECTOR_BYTES
  const files = new NewFiles(path, { force, sources })
  try {
    const backing = base?.target
    const request = { format, sizeBytes, options, backing, passphrase }
    const builder = await beginImage(targetOf(files), request)
    const bitmaps = (await target.bitmaps?.()) ?? []
    if (target.bitmaps && !builder.addBitmaps) {
      throw new UsageError(`this ${format} image cannot have bitmaps; leave out --bitmaps`)
    }
    const sink = new BuilderSink(
      builder,
      await packs(builder, isPacked, format),
      files.main.fd,
      (bytes, offset) => source.read(bytes, 0, bytes.length, offset),
    )
    const copied = { sizeBytes, sparseBytes, base: base?.source, onProgress, onLoss, signal }
    const mayBeDirect = builder.isFlat && !base && !onLoss && sparseBytes > 0
    const isDirect = mayBeDirect && hasPacked(source) && !(sink.clone && mayBeCloned(source))
    if (isDirect) await orNamed(copyDirectly(source, files.main, copied))
    else await orNamed(copyDisk(source, sink, copied))
    if (bitmaps.length > 0) builder.addBitmaps?.(bitmaps)
    builder.finish()
    if (target.isVerified)
      await verifyUnnamed(source, target, files, { onProgress, onLoss, signal })
    // A small disk is copied before anything looks at the signal.
    signal?.throwIfAborted()
    source.requireThere()
    base?.source.requireThere()
    files.commit(builder.mainWith?.bind(builder))
  } finally {
    files.discard()
  }
}

async function verifyUnnamed(
  source: ConvertSource,
  { format, base, passphrase }: NewTarget,
  files: NewFiles,
  { onProgress, onLoss, signal }: Watching,
): Promise<void> {
  const written = await openUnnamed(files, format, base?.source, passphrase)
  try {
    await verify(source, written, {
      onProgress: offset => onProgress?.(source.sizeBytes + offset),
      // They have been reported by the first reading.
      onLoss: onLoss && (() => {}),
      signal,
    })
  } finally {
    written.close()
  }
}

async function packs(builder: ImageBuilder, isPacked: boolean, format: string): Promise<boolean> {
  if (builder.isPackedOnly) return true
  if (isPacked && !builder.packing) {
    const { packedOption } = await creatorOf(format)
    const way = packedOption ? `use -o ${packedOption}, or leave out -c` : 'leave out -c'
    throw new UsageError(`this ${format} image cannot have compressed data; ${way}`)
  }
  return isPacked
}

/**
 * Writes the disk of `source` over the start of `disk`, which is at least as large. Throws ImageError, SystemError; then a part
 * may have been written.
 */
export async function convertInto(
  source: ConvertSource,
  disk: ImageDisk,
  path: string,
  sparseBytes: number,
  watching: Watching = {},
): Promise<void> {
  const { sizeBytes } = source
  if (disk.sizeBytes < sizeBytes) {
    const what = `its disk has ${disk.sizeBytes} bytes, and the source's has ${sizeBytes}`
    throw new ImageError('REFUSED', what, { path, hint: 'make it larger first' })
  }
  await orNamed(copyDisk(source, new DiskSink(disk), { ...watching, sizeBytes, sparseBytes }))
  source.requireThere()
}

/** Adds to errors of a damaged source where on its disk that is, and what to do. */
async function orNamed(copied: Promise<void>): Promise<void> {
  try {
    await copied
  } catch (error) {
    if (!(error instanceof ImageError) || error.code !== 'CORRUPT') throw error
    const { offset, hint = 'copy what is left with --salvage' } = error.context
    const where = offset === undefined ? '' : `, at ${offset} of the disk`
    throw new ImageError(error.code, `${error.message}${where}`, { ...error.context, hint })
  }
}

/** Compares the disk of `source` with `target`, which was made of it. Throws ImageError at the first byte that differs. */
export async function verify(
  source: ConvertSource,
  target: Source,
  watching: Watching = {},
): Promise<void> {
  const { sizeBytes } = source
  if (target.sizeBytes < sizeBytes) {
    const what = `it has ${target.sizeBytes} bytes, and the source has ${sizeBytes}`
    throw new ImageError('CORRUPT', what, { path: target.path, hint: 'do not use it' })
  }
  const sink = new VerifyingSink(target)
  await copyDisk(source, sink, { ...watching, sizeBytes, sparseBytes: 1, base: target })
}

/** Throws ImageError if `path` leads to one of `sources`, the files that are read. */
export function requireOther(path: string, sources: readonly Pick<FileSpec, 'fd'>[]): void {
  const found = fs.statSync(path, { bigint: true, throwIfNoEntry: false })
  if (!found) return
  const isSame = ({ fd }: Pick<FileSpec, 'fd'>) => {
    const { dev, ino, rdev } = fs.fstatSync(fd, { bigint: true })
    return found.isBlockDevice() ? rdev === found.rdev : dev === found.dev && ino === found.ino
  }
  if (!sources.some(isSame)) return
  const what = 'the disk is read from this file'
  throw new ImageError('REFUSED', what, { path, hint: 'name another target' })
}
