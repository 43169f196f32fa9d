/**
 * Raw remains if no format is recognised. Writing to a file on this guess alone may destroy a file that is not a disk. So the
 * content must show that it is a disk.
 */
import { ImageError } from '../../errors.js'
import { WriteProtected } from '../../io/named-file.js'
import type { Store } from '../../io/store.js'
import type { Format } from '../format.js'
import { probeGiven } from '../probe.js'
import { findFormat } from '../registry.js'
import { fileSystemOf } from './signatures/file-system.js'
import { NO_DISK_BYTES, noDiskOf } from './signatures/no-disk.js'
import { partitionTableOf } from './signatures/partition-table.js'
import { sampleOf } from './signatures/sample.js'

/** A disk whose first MiB is all zeros is a fresh one. */
const FRESH_BYTES = 2 ** 20
/** Signatures are in these first bytes, or at the end. */
const SAMPLE_BYTES = FRESH_BYTES + 64 * 1024

/**
 * Returns the format of the file that the user named, by its first bytes. Throws ImageError for unsupported formats, and for
 * files that are not disks.
 */
export function guessFormat(store: Store): Format {
  const format = probeGiven(store)
  const noDisk = format.name === 'raw' ? noDiskOf(sampleOf(store, NO_DISK_BYTES)) : undefined
  if (!noDisk) return format
  throw new ImageError('NOT_AN_IMAGE', `this is ${noDisk.name}, not a disk`, {
    path: store.path,
    hint: `${noDisk.hint}; --format raw shows the file as it is`,
  })
}

/**
 * Throws WriteProtected if an image of this format is not written. If the format is not given, it is found by the first bytes.
 * Throws ImageError as `guessFormat` does.
 */
export function requireWritableFormat(store: Store, format: string | undefined): void {
  const actual = format === undefined ? guessFormat(store) : findFormat(format)
  actual?.requireWritableKind?.(store)
  if (format !== undefined || actual?.name !== 'raw') return
  const sample = sampleOf(store, SAMPLE_BYTES)
  const start = sample.head.subarray(0, FRESH_BYTES)
  const isFresh = start.length === Math.min(FRESH_BYTES, store.sizeBytes) && isZeros(start)
  if (isFresh || partitionTableOf(sample) !== undefined || fileSystemOf(sample) !== undefined)
    return
  const what =
    'its format was guessed as raw, but it has no partition table and no file system that is known'
  throw new WriteProtected(
    store.path,
    `${what} (--format raw says that it is a disk)`,
    'if it is one, give --format raw',
  )
}

const isZeros = (bytes: Buffer): boolean => bytes.equals(Buffer.alloc(bytes.length))
