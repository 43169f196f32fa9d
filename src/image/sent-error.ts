/** Errors as messages between threads: a message keeps the text of an error, but not its class. */
import { SnapshotLimit } from '../formats/snapshot-limit.js'
import { type ErrorCode, type ErrorContext, ImageError, SystemError } from '../errors.js'

/** An error as plain data. */
export type SentError =
  | {
      readonly code: ErrorCode
      readonly message: string
      readonly context: ErrorContext
      readonly isLimit: boolean
    }
  | { readonly syscall: string; readonly errno: number; readonly path: string | undefined }

/** Returns an error that an image or the machine has caused as plain data; undefined for all others, which are bugs. */
export function sentError(error: unknown): SentError | undefined {
  if (error instanceof ImageError) {
    const { code, message, context } = error
    return { code, message, context, isLimit: error instanceof SnapshotLimit }
  }
  if (!(error instanceof SystemError)) return undefined
  const { syscall, errno, path } = error
  return { syscall, errno, path }
}

/** Returns the error that `sentError` made plain data of. */
export function receivedError(sent: SentError): ImageError | SystemError {
  if ('syscall' in sent) return new SystemError(sent.syscall, sent.errno, sent.path)
  const { code, message, context, isLimit } = sent
  return isLimit ? new SnapshotLimit(message, context) : new ImageError(code, message, context)
}
