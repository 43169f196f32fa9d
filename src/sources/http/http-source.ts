/** Objects behind http:// and https://, read by ranges. */
import type { IncomingMessage } from 'node:http'
import { ImageError } from '../../errors.js'
import { FetchError, type RangeSource } from '../network/range-source.js'
import { withRetries } from '../network/retry.js'
import { MAX_OBJECT_BYTES } from '../cache/folder.js'
import {
  contentRange,
  isStrong,
  lastingValidator,
  retryAfterMs,
  type Validators,
  validatorsOf,
} from './answer.js'
import { Connections, problemOf, trustedCertificates, Unreachable } from './exchange.js'
import { type Login, loginFor } from './netrc.js'

const MAX_REDIRECTS = 5
const REDIRECTS = [301, 302, 303, 307, 308]
/** Answers that may be other ones later. */
const PASSING = [408, 425, 429, 500, 502, 503, 504]

export interface HttpOptions {
  readonly timeoutMs: number
  /** A file; undefined for those of the system. */
  readonly certificates: string | undefined
  /** How many of the first bytes to fetch. */
  readonly headBytes: number
}

/** Opens an object. Rejects with ImageError. */
export async function openHttp(address: string, options: HttpOptions): Promise<RangeSource> {
  const source = new HttpSource(new URL(address), options)
  try {
    await source.open()
    return source
  } catch (error) {
    source.close()
    if (!(error instanceof FetchError)) throw error
    throw source.refusal(error)
  }
}

class Denied extends FetchError {}
class Missing extends FetchError {}

class HttpSource implements RangeSource {
  sizeBytes = 0
  validator: string | undefined
  modifiedSeconds: number | undefined
  head = Buffer.alloc(0)
  private readonly connections: Connections
  private validators: Validators = { etag: undefined, lastModified: undefined }
  private login: Login | undefined
  private hasLogin = false
  /** Where redirects have led to. */
  private resolved: URL

  constructor(
    private readonly address: URL,
    private readonly options: HttpOptions,
  ) {
    let certificates: string | undefined
    if (address.protocol === 'https:') {
      try {
        certificates = trustedCertificates(options.certificates)
      } catch (error) {
        throw new ImageError('MISSING', `it cannot be read: ${(error as Error).message}`, {
          ...(options.certificates !== undefined && { path: options.certificates }),
        })
      }
    }
    this.connections = new Connections(address.hostname, certificates, options.timeoutMs)
    this.resolved = address
  }

  /** Asks for the first bytes. Some servers refuse HEAD, and presigned addresses are for GET alone. */
  async open(): Promise<void> {
    const { timeoutMs, headBytes } = this.options
    const range = `bytes=0-${headBytes - 1}`
    await withRetries(
      async signal => {
        const answer = await this.get({ range }, signal).catch(error => {
          // A wrong name should not be tried for a minute.
          throw error instanceof Unreachable ? new FetchError('refused', error.message) : error
        })
        try {
          await this.readHead(answer, headBytes)
        } finally {
          answer.destroy()
        }
      },
      { timeoutMs, signal: new AbortController().signal },
    )
  }

  async fetch(
    at: number,
    length: number,
    onBytes: (bytes: Buffer) => void,
    signal: AbortSignal,
  ): Promise<void> {
    const { etag, lastModified } = this.validators
    const range = `bytes=${at}-${at + length - 1}`
    const condition: Record<string, string> = isStrong(etag)
      ? { 'if-match': etag as string }
      : lastModified === undefined
        ? {}
        : { 'if-unmodified-since': lastModified }
    const answer = await this.get({ range, ...condition }, signal)
    let isWhole = false
    try {
      this.requireSame(answer, at, length)
      await this.take(answer, length, onBytes)
      isWhole = true
    } finally {
      // The rest of another answer is of no use. A whole one leaves the connection for the next request.
      if (!isWhole) answer.destroy()
    }
  }

  close(): void {
    this.connections.close()
  }

  /** Returns the error for the user of an object that could not be opened. */
  refusal(error: FetchError): ImageError {
    if (error instanceof Denied) {
      return new ImageError('REFUSED', error.message, {
        hint: 'the user and the password come from .netrc in your home folder',
      })
    }
    return new ImageError(error instanceof Missing ? 'MISSING' : 'REFUSED', error.message)
  }

  private async readHead(answer: IncomingMessage, headBytes: number): Promise<void> {
    const { statusCode, headers } = answer
    if (statusCode === 416) throw new FetchError('refused', 'it is empty')
    if (statusCode !== 206) {
      throw new FetchError(
        'refused',
        'the server sends no ranges of it (HTTP 206); download it first',
      )
    }
    const range = contentRange(headers['content-range'])
    if (range?.first !== 0 || range.last >= headBytes) {
      throw new FetchError('later', 'the server has sent another range')
    }
    requirePlain(answer)
    if (range.sizeBytes === undefined) {
      throw new FetchError('refused', 'the server does not say how large it is')
    }
    if (range.sizeBytes > MAX_OBJECT_BYTES) {
      throw new FetchError(
        'refused',
        `the server says that it has ${range.sizeBytes} bytes, which no disk has`,
      )
    }
    const parts: Buffer[] = []
    await this.take(answer, range.last + 1, bytes => parts.push(bytes))
    this.head = Buffer.concat(parts)
    this.sizeBytes = range.sizeBytes
    this.validators = validatorsOf(headers)
    this.validator = lastingValidator(this.validators, range.sizeBytes, headers.date)
    const modified = Date.parse(this.validators.lastModified ?? '')
    this.modifiedSeconds = modified >= 0 ? Math.floor(modified / 1000) : undefined
  }

  /** Throws FetchError unless the answer has that range of the object that was opened. */
  private requireSame(answer: IncomingMessage, at: number, length: number): void {
    const { statusCode, headers } = answer
    const { etag, lastModified } = this.validators
    const now = validatorsOf(headers)
    const isOther = (one: string | undefined, other: string | undefined) =>
      one !== undefined && other !== undefined && one !== other
    if (statusCode === 412 || statusCode === 416) throw changed()
    if (statusCode === 200 || statusCode === 206) {
      if (isOther(etag, now.etag)) throw changed()
      if (!isStrong(etag) && isOther(lastModified, now.lastModified)) throw changed()
    }
    if (statusCode !== 206) throw new FetchError('later', 'the server has sent no range')
    const range = contentRange(headers['content-range'])
    if (range?.sizeBytes !== undefined && range.sizeBytes !== this.sizeBytes) throw changed()
    if (!range || range.first !== at || range.last !== at + length - 1) {
      throw new FetchError('later', 'the server has sent another range')
    }
    const isUnknown = isStrong(etag)
      ? now.etag === undefined
      : lastModified !== undefined && now.lastModified === undefined
    if (isUnknown)
      throw new FetchError('later', 'the server does not say which state of it this is')
    requirePlain(answer)
  }

  /** Hands on the bytes of an answer, which must be `length`. Rejects with FetchError. */
  private async take(
    answer: IncomingMessage,
    length: number,
    onBytes: (bytes: Buffer) => void,
  ): Promise<void> {
    let got = 0
    try {
      for await (const chunk of answer as AsyncIterable<Buffer>) {
        const bytes = chunk.subarray(0, length - got)
        got += bytes.length
        if (bytes.length > 0) onBytes(bytes)
        if (bytes.length < chunk.length)
          throw new FetchError('later', 'the server has sent too much')
      }
    } catch (error) {
      throw problemOf(error)
    }
    if (got < length) throw new FetchError('later', 'the server has sent too little')
  }

  /** Sends a request, and follows redirects. Rejects with FetchError for answers that have no bytes. */
  private async get(
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<IncomingMessage> {
    const isAtStart = this.resolved === this.address
    try {
      return await this.follow(this.resolved, headers, signal)
    } catch (error) {
      // A presigned address is good for some time only.
      if (isAtStart || !(error instanceof Denied || error instanceof Missing)) throw error
      this.resolved = this.address
      return await this.follow(this.address, headers, signal)
    }
  }

  private async follow(
    from: URL,
    headers: Readonly<Record<string, string>>,
    signal: AbortSignal,
  ): Promise<IncomingMessage> {
    let url = from
    for (let redirects = 0; redirects <= MAX_REDIRECTS; redirects++) {
      const answer = await this.connections.get(url, headers, this.loginAt(url), signal)
      const { statusCode = 0, headers: said } = answer
      if (statusCode === 200 || statusCode === 206 || statusCode === 412 || statusCode === 416) {
        this.resolved = url
        return answer
      }
      answer.destroy()
      if (!REDIRECTS.includes(statusCode) || said.location === undefined) {
        throw this.problemOfStatus(statusCode, said['retry-after'])
      }
      url = this.redirected(url, said.location)
    }
    throw new FetchError('refused', 'the server redirects in a circle')
  }

  private redirected(from: URL, location: string): URL {
    if (!URL.canParse(location, from.href)) {
      throw new FetchError('refused', 'the server redirects to what is no address')
    }
    const url = new URL(location, from)
    url.username = ''
    url.password = ''
    if (url.protocol !== 'https:' && url.protocol !== 'http:') {
      throw new FetchError('refused', `the server redirects to ${url.protocol}`)
    }
    if (from.protocol === 'https:' && url.protocol === 'http:') {
      throw new FetchError('refused', 'the server redirects from https to http')
    }
    return url
  }

  private problemOfStatus(status: number, retryAfter: string | undefined): FetchError {
    if (status === 401 || status === 403) {
      // They may be corrected before the next request.
      this.hasLogin = false
      return new Denied('refused', `the server refuses access (HTTP ${status})`)
    }
    if (status === 404 || status === 410) {
      return new Missing('refused', `the server has no such file (HTTP ${status})`)
    }
    if (PASSING.includes(status)) {
      const pause = retryAfterMs(retryAfter)
      return new FetchError('later', `the server answers with HTTP ${status}`, pause)
    }
    return new FetchError('refused', `the server answers with HTTP ${status}`)
  }

  /** Only the host of the address gets the login, never one that a redirect leads to. */
  private loginAt(url: URL): Login | undefined {
    if (url.origin !== this.address.origin) return undefined
    if (!this.hasLogin) {
      const { hostname, username } = this.address
      this.login = loginFor(hostname, username === '' ? undefined : decodeURIComponent(username))
      this.hasLogin = true
    }
    return this.login
  }
}

const changed = (): FetchError => new FetchError('changed', 'it has been changed on the server')

function requirePlain({ headers }: IncomingMessage): void {
  const encoding = headers['content-encoding']
  if (encoding === undefined || /^\s*identity\s*$/i.test(encoding)) return
  throw new FetchError('later', `the server sends it as ${encoding.slice(0, 40)}, not as it is`)
}
