/** A command's end of the socket of a server. What the server says is judged, too: root may ask the server of another user. */
import { createConnection, type Socket } from 'node:net'
import { once } from 'node:events'
import { MountError, printable, RemoteError } from '../errors.js'
import { type Peer, peerOf } from '../io/unix-sockets.js'
import {
  type Greeting,
  MAX_ANSWER_BYTES,
  NoRequest,
  parseObject,
  PROTOCOL,
  type Remark,
  type Request,
} from './protocol.js'

/** A server that flushes to a slow disk greets late. */
const GREETING_MS = 20_000

/** The server is dead: nobody listens at its socket. */
export class NobodyListens extends Error {
  override name = 'NobodyListens'
}

export class ServerConnection {
  private constructor(
    private readonly socket: Socket,
    private readonly lines: AsyncIterator<string>,
    readonly greeting: Greeting,
    readonly peer: Peer,
  ) {}

  /**
   * Connects to the socket at `path`. Throws NobodyListens, and MountError if the server does not answer in time.
   * @param name names the server in messages
   */
  static async open(
    path: string,
    name: string,
    timeoutMs = GREETING_MS,
  ): Promise<ServerConnection> {
    const socket = createConnection(path)
    try {
      await once(socket, 'connect')
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException
      if (code === 'ECONNREFUSED' || code === 'ENOENT') throw new NobodyListens()
      throw new MountError(`${name} cannot be asked: ${code}`)
    }
    try {
      const { fd } = (socket as unknown as { readonly _handle: { readonly fd: number } })._handle
      const peer = peerOf(fd)
      const lines = linesOf(socket, name)
      const first = await inTime(lines.next(), name, timeoutMs)
      if (first.done) throw ended(name)
      return new ServerConnection(socket, lines, greetingOf(first.value, name), peer)
    } catch (error) {
      socket.destroy()
      throw error
    }
  }

  /**
   * Sends the request, and returns its result. There is no limit of time. Throws RemoteError with the server's words, and
   * MountError if the server ends before it answers.
   */
  async ask(request: Request, heed: (remark: Remark) => void): Promise<unknown> {
    const { socket, lines } = this
    const name = `the server of ${this.greeting.mountpoint}`
    socket.write(`${JSON.stringify(request)}\n`)
    for (;;) {
      const { done, value } = await lines.next()
      if (done) throw ended(name)
      const message = orMeaningless(() => parseObject(value), name)
      if (typeof message.progress === 'number') heed({ progress: message.progress })
      else if (typeof message.say === 'string') heed({ say: message.say })
      else if ('result' in message) return message.result
      else throw remoteError(message.error, name)
    }
  }

  close(): void {
    this.socket.destroy()
  }
}

async function* linesOf(socket: Socket, name: string): AsyncGenerator<string> {
  let parts: Buffer[] = []
  let bytes = 0
  try {
    for await (const chunk of socket as AsyncIterable<Buffer>) {
      let rest = chunk
      for (let end = rest.indexOf('\n'); end >= 0; end = rest.indexOf('\n')) {
        yield Buffer.concat([...parts, rest.subarray(0, end)]).toString()
        parts = []
        bytes = 0
        rest = rest.subarray(end + 1)
      }
      parts.push(rest)
      bytes += rest.length
      if (bytes > MAX_ANSWER_BYTES) throw meaningless(name)
    }
  } catch (error) {
    // Whatever breaks the connection ends it.
    if (error instanceof MountError) throw error
  }
}

async function inTime<T>(work: Promise<T>, name: string, timeoutMs: number): Promise<T> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    const error = new MountError(
      `${name} does not answer; it may be stopped, or its storage may hang: try again later`,
    )
    timer = setTimeout(() => reject(error), timeoutMs)
  })
  // It may fail after the limit, and nobody listens then.
  work.catch(() => {})
  try {
    return await Promise.race([work, late])
  } finally {
    clearTimeout(timer)
  }
}

const ended = (name: string) =>
  new MountError(`${name} has ended before it answered; look at its log, and at the image`)

const meaningless = (name: string) =>
  new MountError(`${name} gives an answer that this version of vimgfs does not understand`)

function orMeaningless<T>(parse: () => T, name: string): T {
  try {
    return parse()
  } catch (error) {
    throw error instanceof NoRequest ? meaningless(name) : error
  }
}

function greetingOf(line: string, name: string): Greeting {
  const said = orMeaningless(() => parseObject(line), name)
  if ('error' in said) throw remoteError(said.error, name)
  const { protocol, version, pid, image, mountpoint, device, isWritable, diskFiles } = said
  if (protocol !== PROTOCOL) {
    throw new MountError(
      `${name} is of version ${printable(String(version))}, and speaks another language than this one; unmount the image first, or use that version`,
    )
  }
  const texts = [version, image, mountpoint, device]
  const isWhole =
    texts.every(text => typeof text === 'string') &&
    typeof pid === 'number' &&
    typeof isWritable === 'boolean' &&
    Array.isArray(diskFiles) &&
    diskFiles.every(file => typeof file === 'string' && !file.includes('/'))
  if (!isWhole) throw meaningless(name)
  return said as unknown as Greeting
}

function remoteError(error: unknown, name: string): Error {
  const { message, exit } = (error ?? {}) as { message?: unknown; exit?: unknown }
  if (typeof message !== 'string' || !Number.isInteger(exit)) return meaningless(name)
  return new RemoteError(message, exit as number)
}
