/** Blocking sockets: threads that serve a mount wait in system calls, and have no events. */
import { constants } from 'node:os'
import { closeFile, errno } from '../../io/libc.js'
import { loadLibc } from '../../io/native.js'

const libc = loadLibc()
const socket = libc.func('int socket(int domain, int type, int protocol)')
const connect = libc.func('int connect(int fd, const void *address, uint32_t bytes)')
const setsockopt = libc.func(
  'int setsockopt(int fd, int level, int option, const void *value, uint32_t bytes)',
)
const send = libc.func('int64_t send(int fd, const void *source, size_t bytes, int flags)')
const recv = libc.func('int64_t recv(int fd, void *target, size_t bytes, int flags)')

const shutdown = libc.func('int shutdown(int fd, int how)')
const SHUT_BOTH = 2

const AF = { unix: 1, inet: 2, inet6: 10 } as const
const SOCK_STREAM = 1
const SOCK_CLOEXEC = 0o2000000
const SOL_SOCKET = 1
const SO_RCVTIMEO = 20
const SO_SNDTIMEO = 21
const IPPROTO_TCP = 6
const TCP_NODELAY = 1
const MSG_NOSIGNAL = 0x4000
const { EINTR } = constants.errno
/** How long one call may take: the deadline is looked at between calls. */
const CALL_SECONDS = 5

/** The connection has ended, or its server does not keep to the protocol, or is too slow. Another one may help. */
export class ConnectionLost extends Error {
  override name = 'ConnectionLost'
}

/** Where a server listens: plain data. */
export type Endpoint =
  | { readonly path: string }
  /** Numeric addresses, tried in order. */
  | { readonly hosts: readonly string[]; readonly port: number }

/** Returns the descriptor of a new connection, for `closeFile`. Throws ConnectionLost. */
export function connectTo(endpoint: Endpoint, deadline: number): number {
  const addresses =
    'path' in endpoint
      ? [unixAddress(endpoint.path)]
      : endpoint.hosts.map(host => inetAddress(host, endpoint.port))
  let last = 'it has no address'
  for (const address of addresses) {
    if (Date.now() > deadline) break
    const family = address.readUInt16LE(0)
    const fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0)
    if (fd < 0) throw new ConnectionLost(`socket: errno ${errno()}`)
    const limit = Buffer.alloc(16)
    const seconds = Math.min(CALL_SECONDS, Math.max(1, Math.ceil((deadline - Date.now()) / 1000)))
    limit.writeBigInt64LE(BigInt(seconds), 0)
    for (const option of [SO_RCVTIMEO, SO_SNDTIMEO]) {
      setsockopt(fd, SOL_SOCKET, option, limit, limit.length)
    }
    const on = Buffer.from([1, 0, 0, 0])
    if (family !== AF.unix) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, on, on.length)
    if (connect(fd, address, address.length) === 0) return fd
    last = reasonOf(errno())
    closeFile(fd)
  }
  throw new ConnectionLost(last)
}

function reasonOf(code: number): string {
  const { ECONNREFUSED, ENOENT, EACCES, EINPROGRESS, ETIMEDOUT } = constants.errno
  if (code === ECONNREFUSED) return 'nobody listens there'
  if (code === ENOENT) return 'there is no such socket'
  if (code === EACCES) return 'you may not use this socket'
  if (code === EINPROGRESS || code === ETIMEDOUT) return 'it does not answer'
  const name = Object.entries(constants.errno).find(([, value]) => value === code)?.[0]
  return name ?? `errno ${code}`
}

/** Makes calls that wait for the connection end, in all threads. */
export const hangUp = (fd: number): void => void shutdown(fd, SHUT_BOTH)

/** Sends all of `source`. Throws ConnectionLost. */
export function sendAll(fd: number, source: Buffer, deadline: number): void {
  for (let done = 0; done < source.length; ) {
    const sent = send(fd, source.subarray(done), source.length - done, MSG_NOSIGNAL)
    done += counted(sent, deadline)
  }
}

/** Fills `length` bytes of `target` from `start` on. Throws ConnectionLost. */
export function receiveAll(
  fd: number,
  target: Buffer,
  start: number,
  length: number,
  deadline: number,
): void {
  for (let done = 0; done < length; ) {
    const got = recv(fd, target.subarray(start + done), length - done, 0)
    if (got === 0) throw new ConnectionLost('it has closed the connection')
    done += counted(got, deadline)
  }
}

function counted(result: number, deadline: number): number {
  const { EAGAIN } = constants.errno
  const code = result < 0 ? errno() : 0
  if (code !== 0 && code !== EINTR && code !== EAGAIN) throw new ConnectionLost(reasonOf(code))
  if (Date.now() > deadline) throw new ConnectionLost('it does not answer')
  return Math.max(0, result)
}

/** Returns a struct sockaddr_un. */
function unixAddress(path: string): Buffer {
  const address = Buffer.alloc(110)
  address.writeUInt16LE(AF.unix, 0)
  address.write(path, 2)
  return address
}

/** The most bytes of the path of a socket. */
export const MAX_PATH_BYTES = 107

/** Returns a struct sockaddr_in or sockaddr_in6. */
function inetAddress(host: string, port: number): Buffer {
  const isV4 = !host.includes(':')
  const address = Buffer.alloc(isV4 ? 16 : 28)
  address.writeUInt16LE(isV4 ? AF.inet : AF.inet6, 0)
  address.writeUInt16BE(port, 2)
  if (isV4) Buffer.from(host.split('.').map(Number)).copy(address, 4)
  else v6Bytes(host).copy(address, 8)
  return address
}

function v6Bytes(host: string): Buffer {
  const bytes = Buffer.alloc(16)
  const [before = '', after = ''] = host.split('::')
  const put = (text: string, from: number) =>
    text.split(':').forEach((group, i) => {
      bytes.writeUInt16BE(Number.parseInt(group, 16), from + 2 * i)
    })
  if (before !== '') put(before, 0)
  if (after !== '') put(after, 16 - 2 * after.split(':').length)
  return bytes
}
