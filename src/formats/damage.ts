/** Adds the place on the disk to errors about damage. */
import { ImageError } from '../errors.js'

/** @param offset the place on the disk, in bytes */
export const damageAt = (
  path: string,
  offset: number,
  message: string,
  cause?: unknown,
): ImageError => new ImageError('CORRUPT', message, { path, offset }, { cause })

/** Runs `read`, and adds `offset` to any ImageError that it throws. */
export function located<T>(path: string, offset: number, read: () => T): T {
  try {
    return read()
  } catch (error) {
    if (!(error instanceof ImageError)) throw error
    throw damageAt(path, offset, error.message, error)
  }
}
