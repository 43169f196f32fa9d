/** Errors about damage of an image. They name the file; the engine adds the place on the disk. */
import { ImageError } from '../errors.js'

/** Returns the error for damage of the file at `path`. */
export const damageOf = (path: string, message: string): ImageError =>
  new ImageError('CORRUPT', message, { path })

/** Runs `read`, and adds the file to an ImageError that names none. */
export function naming<T>(path: string, read: () => T): T {
  try {
    return read()
  } catch (error) {
    if (error instanceof ImageError) error.context.path ??= path
    throw error
  }
}
