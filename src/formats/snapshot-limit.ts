import { type ErrorContext, ImageError } from '../errors.js'

/** An image has no room for one more snapshot, or for its references. */
export class SnapshotLimit extends ImageError {
  constructor(message: string, context: ErrorContext) {
    super('UNSUPPORTED', message, context)
  }
}
