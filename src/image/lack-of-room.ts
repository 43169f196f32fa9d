/** Writes that find no room: space that was freed may be had, but only once a flush has given it back. */
import { constants } from 'node:os'
import { SystemError } from '../errors.js'

const { EDQUOT, EFBIG, ENOSPC } = constants.errno

/** Returns whether a write failed for want of room in the file or on its file system, and is undone. */
export const isLackOfRoom = (error: unknown): boolean =>
  error instanceof SystemError &&
  !error.endsWriting &&
  [ENOSPC, EDQUOT, EFBIG].includes(error.errno)
