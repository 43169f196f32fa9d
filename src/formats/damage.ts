/** Damage of an image, with the place on its disk that it was met at. */
import { ImageError } from '../errors.js'

/** @param offset bytes on the disk */
export const damageAt = (
  path: string,
  offset: number,
  message: string,
  cause?: unknown,
): ImageError => new ImageError('CORRUPT', message, { path, offset }, { cause })

/** Runs `read`; what it throws of damage gets that place. */
export function located<T>(path: string, offset: number, read: () => T): T {
  try {
    return read()
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    throw damageAt(path, offset, error.message, error)
  }
}
