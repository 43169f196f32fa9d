/**
 * The client's side of the NBD protocol, over one blocking connection: one request at a time.
 *
 * Source: the NBD project's doc/proto.md: "Handshake", "Option negotiation", "Transmission".
 */
import { constants } from 'node:os'
import { SystemError } from '../../errors.js'
import { ConnectionLost, receiveAll, sendAll } from './socket.js'

const MAGIC = {
  greeting: 0x4e42444d41474943n,
  option: 0x49484156454f5054n,
  optionReply: 0x3e889045565a9n,
  request: 0x25609513,
  simple: 0x67446698,
  structured: 0x668e33ef,
} as const
const FIXED_NEWSTYLE = 1
const NO_ZEROES = 2
const OPTION = { go: 7, structured: 8, setContext: 10 } as const
const REPLY = { ack: 1, info: 3, context: 4, error: 2 ** 31, unknownExport: 2 ** 31 + 6 } as const
const INFO = { export: 0, blockSize: 3 } as const
export const FLAG = {
  readOnly: 2,
  flush: 4,
  zeroes: 64,
  multi: 256,
} as const
export const COMMAND = { read: 0, write: 1, disconnect: 2, flush: 3, zeroes: 6, status: 7 } as const
const CHUNK = { none: 0, data: 1, hole: 2, status: 5, error: 32769 } as const
const IS_LAST = 1
/** The name of the context that tells of holes. */
const ALLOCATION = 'base:allocation'
/** Bytes of a reply to an option, and of a message of an error, at most. */
const MAX_REPLY_BYTES = 64 * 1024
/** Bytes of one request where the server states no limit (its default is 32 MiB): less waiting for one lock. */
export const MOST_BYTES = 2 ** 20
/** Answers of a server to one option or request, at most. */
const MAX_PARTS = 4096

/** An export as the server describes it: plain data. */
export interface ExportInfo {
  readonly sizeBytes: number
  readonly flags: number
  /** Requests begin and end at multiples of this. */
  readonly blockBytes: number
  /** The most bytes of a request. */
  readonly mostBytes: number
  /** The number of the context for holes; undefined if the server does not tell of them. */
  readonly holes: number | undefined
}

/** The export cannot be used, and trying again does not help. The message is the end of a sentence. */
export class ExportRefused extends Error {
  override name = 'ExportRefused'
}

export interface StatusRun {
  readonly length: number
  readonly isZero: boolean
}

export class Connection {
  constructor(
    readonly fd: number,
    private readonly cookies: Int32Array,
  ) {}

  /** Agrees on an export. Throws ConnectionLost, ExportRefused. */
  negotiate(name: string, deadline: number): ExportInfo {
    const greeting = this.receive(18, deadline)
    if (greeting.toString('latin1', 0, 8) !== 'NBDMAGIC') {
      throw new ExportRefused('no NBD server answers there')
    }
    const flags = greeting.readUInt16BE(16)
    const isNew = greeting.readBigUInt64BE(8) === MAGIC.option && (flags & FIXED_NEWSTYLE) !== 0
    if (!isNew) throw new ExportRefused('its server speaks only the old form of the protocol')
    const own = Buffer.alloc(4)
    own.writeUInt32BE(FIXED_NEWSTYLE | (flags & NO_ZEROES))
    this.send(own, deadline)
    const isStructured = this.option(OPTION.structured, Buffer.alloc(0), deadline).isGranted
    const holes = isStructured ? this.holesContext(name, deadline) : undefined
    return { ...this.go(name, deadline), holes }
  }

  private holesContext(name: string, deadline: number): number | undefined {
    const query = [prefixed(name), word(1), prefixed(ALLOCATION)]
    const { isGranted, parts } = this.option(OPTION.setContext, Buffer.concat(query), deadline)
    const found = parts.find(({ type, data }) => type === REPLY.context && data.length >= 4)
    return isGranted && found?.data.toString('utf8', 4) === ALLOCATION
      ? found.data.readUInt32BE(0)
      : undefined
  }

  private go(name: string, deadline: number): Omit<ExportInfo, 'holes'> {
    const asked = Buffer.alloc(4)
    asked.writeUInt16BE(1, 0)
    asked.writeUInt16BE(INFO.blockSize, 2)
    const request = Buffer.concat([prefixed(name), asked])
    const { isGranted, parts, error, text } = this.option(OPTION.go, request, deadline)
    if (!isGranted) {
      if (error === REPLY.unknownExport) throw new ExportRefused('its server has no such export')
      const why = text === '' ? '' : ` (${text})`
      throw new ExportRefused(`its server refuses it${why}`)
    }
    const info = (kind: number, bytes: number) =>
      parts.find(
        ({ type, data }) =>
          type === REPLY.info && data.length >= bytes && data.readUInt16BE(0) === kind,
      )?.data
    const about = info(INFO.export, 12)
    if (!about) throw new ConnectionLost('it does not say how large the export is')
    const sizeBytes = Number(about.readBigUInt64BE(2))
    if (!Number.isSafeInteger(sizeBytes)) throw new ExportRefused('it is too large')
    const blocks = info(INFO.blockSize, 14)
    const blockBytes = blocks?.readUInt32BE(2) ?? 1
    const most = Math.min(blocks?.readUInt32BE(10) ?? MOST_BYTES, MOST_BYTES)
    const isPower = blockBytes > 0 && (blockBytes & (blockBytes - 1)) === 0
    if (!isPower || blockBytes > 64 * 1024 || most < blockBytes) {
      throw new ExportRefused(`its server has blocks of ${blockBytes} bytes`)
    }
    return {
      sizeBytes,
      flags: about.readUInt16BE(10),
      blockBytes,
      mostBytes: most - (most % blockBytes),
    }
  }

  /** Asks for an option, and reads all answers. */
  private option(option: number, data: Buffer, deadline: number) {
    const header = Buffer.alloc(16)
    header.writeBigUInt64BE(MAGIC.option, 0)
    header.writeUInt32BE(option, 8)
    header.writeUInt32BE(data.length, 12)
    this.send(Buffer.concat([header, data]), deadline)
    const parts: { readonly type: number; readonly data: Buffer }[] = []
    for (let count = 0; count < MAX_PARTS; count++) {
      const head = this.receive(20, deadline)
      const length = head.readUInt32BE(16)
      if (head.readBigUInt64BE(0) !== MAGIC.optionReply || length > MAX_REPLY_BYTES) break
      if (head.readUInt32BE(8) !== option) break
      const type = head.readUInt32BE(12)
      const body = this.receive(length, deadline)
      if (type === REPLY.ack) return { isGranted: true, parts, error: 0, text: '' }
      if (type >= REPLY.error) {
        return { isGranted: false, parts, error: type, text: body.toString('utf8', 0, 200) }
      }
      parts.push({ type, data: body })
    }
    throw new ConnectionLost('it does not keep to the protocol')
  }

  /** Reads a range into `target`. Throws ConnectionLost, SystemError. */
  read(target: Buffer, start: number, length: number, at: number, deadline: number): void {
    this.request(COMMAND.read, at, length, undefined, deadline, { target, start })
  }

  write(source: Buffer, at: number, deadline: number): void {
    this.request(COMMAND.write, at, source.length, source, deadline)
  }

  zero(at: number, length: number, deadline: number): void {
    this.request(COMMAND.zeroes, at, length, undefined, deadline)
  }

  flush(deadline: number): void {
    this.request(COMMAND.flush, 0, 0, undefined, deadline)
  }

  /** Returns which parts of a range are zeros, from its start on; the answer may be shorter than the range. */
  status(at: number, length: number, holes: number, deadline: number): StatusRun[] {
    return this.request(COMMAND.status, at, length, undefined, deadline, undefined, holes)
  }

  disconnect(): void {
    const soon = Date.now() + 1000
    this.send(this.header(COMMAND.disconnect, 0, 0, 0n), soon)
  }

  private request(
    command: number,
    at: number,
    length: number,
    payload: Buffer | undefined,
    deadline: number,
    into?: { readonly target: Buffer; readonly start: number },
    holes?: number,
  ): StatusRun[] {
    const cookie = BigInt(Atomics.add(this.cookies, 0, 1) >>> 0)
    const header = this.header(command, at, length, cookie)
    this.send(payload ? Buffer.concat([header, payload]) : header, deadline)
    const runs: StatusRun[] = []
    let filled = 0
    let failure = 0
    const requireCookie = (found: bigint) => {
      if (found !== cookie) throw new ConnectionLost('it answers what was not asked')
    }
    for (let count = 0; count < MAX_PARTS; count++) {
      const magic = this.receive(4, deadline).readUInt32BE(0)
      if (magic === MAGIC.simple) {
        const rest = this.receive(12, deadline)
        requireCookie(rest.readBigUInt64BE(4))
        failure = rest.readUInt32BE(0)
        if (failure === 0 && into) this.receiveInto(into, 0, length, deadline)
        if (failure === 0 && holes !== undefined) throw new ConnectionLost('it tells no holes')
        return this.ended(command, failure, runs)
      }
      if (magic !== MAGIC.structured) throw new ConnectionLost('it does not keep to the protocol')
      const head = this.receive(16, deadline)
      requireCookie(head.readBigUInt64BE(4))
      const type = head.readUInt16BE(2)
      const bytes = head.readUInt32BE(12)
      if (type === CHUNK.data && into && bytes > 8 && bytes <= length + 8) {
        const from = Number(this.receive(8, deadline).readBigUInt64BE(0)) - at
        requireRange(from, bytes - 8, length)
        this.receiveInto(into, from, bytes - 8, deadline)
        filled += bytes - 8
      } else if (bytes > MAX_REPLY_BYTES) {
        throw new ConnectionLost('it does not keep to the protocol')
      } else {
        const body = this.receive(bytes, deadline)
        if (type === CHUNK.hole && into && bytes === 12) {
          const from = Number(body.readBigUInt64BE(0)) - at
          const hole = body.readUInt32BE(8)
          requireRange(from, hole, length)
          into.target.fill(0, into.start + from, into.start + from + hole)
          filled += hole
        } else if (type === CHUNK.status && holes !== undefined && bytes >= 12) {
          if (body.readUInt32BE(0) === holes) runs.push(...runsOf(body, length))
        } else if (type >= CHUNK.error && bytes >= 6) failure ||= body.readUInt32BE(0) || EIO_NUMBER
        else if (type !== CHUNK.none) throw new ConnectionLost('it does not keep to the protocol')
      }
      if ((head.readUInt16BE(0) & IS_LAST) === 0) continue
      const isWhole = failure !== 0 || !into || filled === length
      if (!isWhole) throw new ConnectionLost('it leaves bytes out')
      return this.ended(command, failure, runs)
    }
    throw new ConnectionLost('its answer does not end')
  }

  private ended(command: number, failure: number, runs: StatusRun[]): StatusRun[] {
    if (failure === 0) return runs
    if (failure === SHUTDOWN) throw new ConnectionLost('it is being shut down')
    const name = command === COMMAND.read || command === COMMAND.status ? 'read' : 'write'
    const call = command === COMMAND.flush ? 'flush' : name
    throw new SystemError(call, ERRORS.get(failure) ?? constants.errno.EIO)
  }

  private header(command: number, at: number, length: number, cookie: bigint): Buffer {
    const header = Buffer.alloc(28)
    header.writeUInt32BE(MAGIC.request, 0)
    header.writeUInt16BE(command, 6)
    header.writeBigUInt64BE(cookie, 8)
    header.writeBigUInt64BE(BigInt(at), 16)
    header.writeUInt32BE(length, 24)
    return header
  }

  private send(bytes: Buffer, deadline: number): void {
    sendAll(this.fd, bytes, deadline)
  }

  private receive(length: number, deadline: number): Buffer {
    const bytes = Buffer.alloc(length)
    receiveAll(this.fd, bytes, 0, length, deadline)
    return bytes
  }

  private receiveInto(
    { target, start }: { readonly target: Buffer; readonly start: number },
    from: number,
    length: number,
    deadline: number,
  ): void {
    receiveAll(this.fd, target, start + from, length, deadline)
  }
}

/** Errors as the protocol numbers them. */
const EIO_NUMBER = 5
const SHUTDOWN = 108
const ERRORS = new Map([
  [1, constants.errno.EPERM],
  [5, constants.errno.EIO],
  [12, constants.errno.ENOMEM],
  [28, constants.errno.ENOSPC],
])

function requireRange(from: number, bytes: number, length: number): void {
  if (from >= 0 && bytes > 0 && from + bytes <= length) return
  throw new ConnectionLost('it answers what was not asked')
}

/** Reads the runs of a block status: each a length, and flags, of which the second one says zeros. */
function runsOf(body: Buffer, length: number): StatusRun[] {
  const runs: StatusRun[] = []
  for (let at = 4, done = 0; at + 8 <= body.length && done < length; at += 8) {
    const bytes = Math.min(body.readUInt32BE(at), length - done)
    if (bytes === 0) throw new ConnectionLost('it does not keep to the protocol')
    runs.push({ length: bytes, isZero: (body.readUInt32BE(at + 4) & 2) !== 0 })
    done += bytes
  }
  return runs
}

function word(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}

function prefixed(text: string): Buffer {
  const bytes = Buffer.from(text)
  return Buffer.concat([word(bytes.length), bytes])
}
