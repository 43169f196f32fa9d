/**
 * The socket of a mount's server: commands ask there for what changes the image, or looks at it, while it is mounted.
 *
 * All that comes in is judged as if an enemy had sent it. The main thread does this work beside its other work, so nothing here
 * waits: lines, connections and the time for a request are bounded, and what goes out is bounded by what the other side reads.
 */
import fs from 'node:fs'
import net, { type Socket } from 'node:net'
import { inWords, isExpected } from '../errors.js'
import { isAbandoned, peerOf } from '../io/unix-sockets.js'
import type { Logger } from '../log.js'
import { candidates, openForServer, type SocketFolder } from './folders.js'
import { hiddenName, imageKey, newName, parseName } from './names.js'
import {
  type Answer,
  failure,
  type Greeting,
  MAX_REQUEST_BYTES,
  NoRequest,
  parseRequest,
  type Remark,
  type Request,
} from './protocol.js'

/** Each takes a descriptor; see DESCRIPTORS_TO_SERVE. */
const MAX_CONNECTIONS = 8
/** How long a request may take to arrive. */
const REQUEST_MS = 10_000
/** How long an answer may take to be read. */
const ANSWER_MS = 60_000
/** Remarks are left out while so many bytes wait for their reader. */
const MAX_WAITING_BYTES = 256 * 1024
/** Sockets that are looked at when a server starts; the rest is left to the next one. */
const MAX_LOOKED_AT = 256
/** A server needs less to give its socket the final name. */
const HIDDEN_MS = 60_000

export interface Work {
  /** Tells the command something. */
  readonly remark: (remark: Remark) => void
  /** Aborted when the command has gone. */
  readonly gone: AbortSignal
}

/** Does what a request asks for. Returns the result, which becomes JSON. */
export type Handler = (request: Request, work: Work) => Promise<unknown>

export class ControlSocket {
  /** The path for status.json. */
  readonly path: string
  private readonly server: net.Server
  private readonly sockets = new Set<Socket>()
  private readonly inode: bigint
  private greet: (() => Greeting) | undefined
  private handler: Handler | undefined

  private constructor(
    private readonly folder: SocketFolder,
    private readonly name: string,
    private readonly logger: Logger,
    private readonly requestMs: number,
  ) {
    this.path = `${folder.path}/${name}`
    this.server = net.createServer(socket => this.accept(socket))
    this.server.on('error', error => logger.warn({ why: error.message }, NO_SOCKET))
    const hidden = folder.at(hiddenName(name))
    // It listens when this returns, or the error follows.
    this.server.listen(hidden).unref()
    this.inode = fs.lstatSync(hidden, { bigint: true }).ino
  }

  /**
   * Makes the socket of the image that is open at `fd`. Nobody finds it before `serve`. Returns undefined if there can be none:
   * the mount goes on without, and the log says why.
   * @param folders where it may be, the best first
   * @param requestMs how long a request may take to arrive
   */
  static open(
    fd: number,
    logger: Logger,
    folders: readonly string[] = candidates(process.geteuid?.() ?? 0),
    requestMs = REQUEST_MS,
  ): ControlSocket | undefined {
    const folder = openForServer(folders, process.geteuid?.() ?? 0)
    if (typeof folder === 'string') {
      logger.warn({ why: folder }, NO_SOCKET)
      return undefined
    }
    try {
      clean(folder)
      const name = newName(imageKey(fs.fstatSync(fd, { bigint: true })))
      return new ControlSocket(folder, name, logger, requestMs)
    } catch (error) {
      folder.close()
      logger.warn({ why: `${folder.path}: ${inWords(error)}` }, NO_SOCKET)
      return undefined
    }
  }

  /** Begins to answer. Never throws. */
  serve(greet: () => Greeting, handler: Handler): void {
    this.greet = greet
    this.handler = handler
    const { folder, name, logger } = this
    try {
      fs.renameSync(folder.at(hiddenName(name)), folder.at(name))
    } catch (error) {
      logger.warn({ why: `${this.path}: ${inWords(error)}` }, NO_SOCKET)
    }
  }

  /** Ends all connections and removes the socket. Never throws. */
  close(): void {
    if (!this.server.listening) return
    this.server.close()
    for (const socket of this.sockets) socket.destroy()
    const { folder, name, inode } = this
    for (const one of [name, hiddenName(name)]) {
      try {
        const found = fs.lstatSync(folder.at(one), { bigint: true })
        if (found.ino === inode) fs.unlinkSync(folder.at(one))
      } catch {
        // Somebody has removed it.
      }
    }
    folder.close()
  }

  private accept(socket: Socket): void {
    socket.unref()
    this.sockets.add(socket)
    socket.on('close', () => this.sockets.delete(socket))
    // The other end has gone; it gets no answer.
    socket.on('error', () => {})
    const { greet, handler, logger } = this
    if (!greet || !handler) socket.destroy()
    else if (this.sockets.size > MAX_CONNECTIONS) refuse(socket, 'too many commands ask at once')
    else if (!isAllowed(socket)) {
      logger.warn('a process of another user has asked for something, and is refused')
      refuse(socket, 'the mount belongs to another user')
    } else converse(socket, greet(), handler, logger, this.requestMs)
  }
}

const NO_SOCKET = 'there is no socket, so commands cannot work on the image while it is mounted'

/** Removes the sockets of servers that were killed. */
function clean(folder: SocketFolder): void {
  for (const name of folder.names().slice(0, MAX_LOOKED_AT)) {
    const parsed = parseName(name)
    if (!parsed) continue
    try {
      const isNew = () => Date.now() - fs.lstatSync(folder.at(name)).mtimeMs < HIDDEN_MS
      if (!isAbandoned(folder.at(name)) || (parsed.isHidden && isNew())) continue
      fs.unlinkSync(folder.at(name))
    } catch {
      // Another server has removed it.
    }
  }
}

/** Reports whether the other end is the mount's owner, or root. */
function isAllowed(socket: Socket): boolean {
  const { fd } = (socket as unknown as { readonly _handle: { readonly fd: number } })._handle
  try {
    const { uid } = peerOf(fd)
    return uid === 0 || uid === process.geteuid?.()
  } catch {
    return false
  }
}

const refuse = (socket: Socket, message: string): void =>
  finish(socket, { error: { message, exit: 1 } })

function finish(socket: Socket, answer: Answer): void {
  const timer = setTimeout(() => socket.destroy(), ANSWER_MS)
  timer.unref()
  socket.on('close', () => clearTimeout(timer))
  socket.end(`${JSON.stringify(answer)}\n`, () => socket.destroy())
}

/** Greets, reads one request, and has it answered. */
function converse(
  socket: Socket,
  greeting: Greeting,
  handler: Handler,
  logger: Logger,
  requestMs: number,
): void {
  const gone = new AbortController()
  const late = setTimeout(() => refuse(socket, 'the request did not arrive in time'), requestMs)
  late.unref()
  socket.on('close', () => {
    gone.abort()
    clearTimeout(late)
  })
  const parts: Buffer[] = []
  let bytes = 0
  let isComplete = false
  socket.on('data', (part: Buffer) => {
    const end = part.indexOf('\n')
    bytes += part.length
    if (isComplete || (end >= 0 && end < part.length - 1)) socket.destroy()
    else if (bytes > MAX_REQUEST_BYTES) {
      isComplete = true
      refuse(socket, `a request has ${MAX_REQUEST_BYTES} bytes at most`)
    } else {
      parts.push(part)
      if (end < 0) return
      isComplete = true
      clearTimeout(late)
      void answer(socket, Buffer.concat(parts).toString(), handler, gone.signal, logger)
    }
  })
  socket.write(`${JSON.stringify(greeting)}\n`)
}

async function answer(
  socket: Socket,
  line: string,
  handler: Handler,
  gone: AbortSignal,
  logger: Logger,
): Promise<void> {
  const remark = (remark: Remark) => {
    if (!gone.aborted && socket.writableLength < MAX_WAITING_BYTES) {
      socket.write(`${JSON.stringify(remark)}\n`)
    }
  }
  try {
    const result = await handler(parseRequest(line), { remark, gone })
    finish(socket, { result })
  } catch (error) {
    if (!isExpected(error) && !(error instanceof NoRequest)) {
      logger.error({ stack: (error as Error).stack ?? String(error) }, 'a request has failed')
    }
    finish(socket, failure(error))
  }
}
