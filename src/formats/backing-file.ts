import type { ReadPart, Reference } from './format.js'
import { MAX_BACKING_NAME_BYTES } from './limits.js'
import { backInPlace } from './way-out.js'

/**
 * Returns the reference to the backing file `name` of an image whose tools cannot change that name; undefined for an
 * image without one.
 * @param format the format that the image's programs take every backing file for, if there is such
 */
export const fixedBackingFile = (
  name: string | undefined,
  format?: string,
): Reference | undefined =>
  name === undefined
    ? undefined
    : {
        role: 'backing file',
        name,
        names: [name],
        skipsOpen: false,
        format,
        statesFormat: false,
        hint: backInPlace,
        loopHint: 'restore it from a copy',
      }

/** Returns the name of `length` bytes at `at` of a header that may be damaged; empty if the header has none. */
export const backingNameAt = (read: ReadPart, at: number | bigint, length: number): Buffer =>
  at > 0 ? read(at, Math.min(length, MAX_BACKING_NAME_BYTES)) : Buffer.alloc(0)
