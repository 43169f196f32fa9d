/** Says where on the disk its bytes cannot be read. */
import { constants } from 'node:os'
import { ImageError, SystemError } from '../../errors.js'

/** Runs `read`, and adds the place on the disk to errors of damage that have none. */
export function withPlace(offset: number, read: () => void): void {
  try {
    read()
  } catch (error) {
    if (error instanceof ImageError && error.context.offset === undefined) {
      throw new ImageError(error.code, error.message, { ...error.context, offset })
    }
    if (error instanceof SystemError && error.errno === constants.errno.EIO) {
      const context = { offset, ...(error.path !== undefined && { path: error.path }) }
      throw new ImageError('CORRUPT', 'its storage cannot be read', context)
    }
    throw error
  }
}
