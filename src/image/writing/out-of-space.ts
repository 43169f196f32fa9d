/** Recognises writes that find no room. Freed space may be available after a flush has given it back. */
import { constants } from 'node:os'
import { SystemError } from '../../errors.js'

const { EDQUOT, EFBIG, ENOSPC } = constants.errno

/** Reports whether a write failed for lack of room in the file or on its file system, and was undone. */
export const isOutOfSpace = (error: unknown): boolean =>
  error instanceof SystemError &&
  !error.endsWriting &&
  [ENOSPC, EDQUOT, EFBIG].includes(error.errno)
