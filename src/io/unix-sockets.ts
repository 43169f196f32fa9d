/** What Node lacks of Unix sockets: who is at the other end, and whether anybody listens (unix(7)). */
import { constants } from 'node:os'
import { SystemError } from '../errors.js'
import { closeFile, errno } from './libc.js'
import { loadLibc } from './native.js'

const libc = loadLibc()
const getsockopt = libc.func(
  'int getsockopt(int fd, int level, int option, void *value, void *bytes)',
)
const socket = libc.func('int socket(int domain, int type, int protocol)')
const connect = libc.func('int connect(int fd, const void *address, uint32_t bytes)')

const SOL_SOCKET = 1
const SO_PEERCRED = 17
const AF_UNIX = 1
const SOCK_STREAM = 1
const SOCK_NONBLOCK = 0o4000
const SOCK_CLOEXEC = 0o2000000
/** struct ucred: pid, uid and gid, 32 bits each. */
const UCRED_BYTES = 12
/** struct sockaddr_un: the family in 16 bits, then the path with a NUL. */
const ADDRESS_BYTES = 110
export const MAX_SOCKET_PATH_BYTES = ADDRESS_BYTES - 3

export interface Peer {
  /** 0 if the process is in a PID namespace that this process does not see. */
  readonly pid: number
  /** 65534 for users that this user namespace does not have. */
  readonly uid: number
}

/** Returns who has connected to, or listens at, the other end of the socket `fd`. Throws SystemError. */
export function peerOf(fd: number): Peer {
  const value = Buffer.alloc(UCRED_BYTES)
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(UCRED_BYTES)
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, value, bytes) < 0) {
    throw new SystemError('getsockopt', errno())
  }
  return { pid: value.readInt32LE(0), uid: value.readUInt32LE(4) }
}

/** Reports whether `path` is a socket at which nobody listens any more. Never waits. */
export function isAbandoned(path: string): boolean {
  const fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
  if (fd < 0) return false
  const address = Buffer.alloc(ADDRESS_BYTES)
  address.writeUInt16LE(AF_UNIX, 0)
  address.write(path, 2, MAX_SOCKET_PATH_BYTES, 'utf8')
  const isRefused = connect(fd, address, address.length) < 0 && errno() === ECONNREFUSED
  closeFile(fd)
  return isRefused
}

const { ECONNREFUSED } = constants.errno
