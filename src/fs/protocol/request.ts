/** A request of the kernel, and what its arguments and its reply have in common. */
import { constants } from 'node:os'
import { GETATTR_FH, GETATTR_IN, GETXATTR_OUT } from './protocol.js'

const { ERANGE } = constants.errno

/** One request. A worker has one such object and fills it for each request. */
export interface Request {
  nodeid: number
  uid: number
  pid: number
  message: Buffer
  /** Where the arguments begin in `message`, and where they end. */
  args: number
  end: number
  /** Where the reply's payload goes. */
  payload: Buffer
}

/** Returns the handle of a GETATTR or STATX, if it has one. */
export function askingHandle({ message, args, end }: Request): number | undefined {
  if (end - args < GETATTR_IN.size) return undefined
  const hasHandle = message.readUInt32LE(args + GETATTR_IN.at.getattrFlags) & GETATTR_FH
  return hasHandle ? message.readUInt32LE(args + GETATTR_IN.at.fh) : undefined
}

/** Writes the answer of GETXATTR or LISTXATTR: the size if the caller offers no room, else the bytes. */
export function putSized(payload: Buffer, offered: number, value: Buffer): number {
  if (offered === 0) {
    GETXATTR_OUT.put(payload, 0, { size: value.length, padding: 0 })
    return GETXATTR_OUT.size
  }
  if (value.length > offered) return -ERANGE
  return value.copy(payload)
}

/** Returns the string at `at`, up to its NUL or the end of the message. */
export function stringAt({ message, end }: Request, at: number): string {
  const nul = message.indexOf(0, at)
  return message.toString('utf8', at, nul < 0 || nul > end ? end : nul)
}
