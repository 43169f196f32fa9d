/** One request and the headers of its answer, with all limits that a hostile server needs. */
import fs from 'node:fs'
import http, { type IncomingMessage } from 'node:http'
import https from 'node:https'
import { FetchError } from '../network/range-source.js'
import { isNear, lookupFar, NEAR } from './hosts.js'
import type { Login } from './netrc.js'

/** How long a server may send nothing, at most. */
const STALL_MS = 10_000
const MAX_HEADER_BYTES = 32 * 1024
const CONNECTIONS = 8

/** Where the system keeps the certificates that it trusts. */
const SYSTEM_CERTIFICATES = [
  '/etc/ssl/certs/ca-certificates.crt',
  '/etc/pki/tls/certs/ca-bundle.crt',
  '/etc/ssl/cert.pem',
]

/** Returns the certificates to trust, as PEM; undefined for those of Node, if the system has none. Throws Node's error. */
export function trustedCertificates(file: string | undefined): string | undefined {
  if (file !== undefined) return fs.readFileSync(file, 'utf8')
  const names = [process.env.SSL_CERT_FILE ?? '', ...SYSTEM_CERTIFICATES]
  const found = names.find(name => name !== '' && fs.existsSync(name))
  return found === undefined ? undefined : fs.readFileSync(found, 'utf8')
}

/** The connections of one object. Those to its own host and those that redirects lead to are kept apart. */
export class Connections {
  private readonly agents = new Map<string, http.Agent>()

  /** @param ownHost the host of the image's address, which may be near */
  constructor(
    private readonly ownHost: string,
    private readonly certificates: string | undefined,
    private readonly timeoutMs: number,
  ) {}

  close(): void {
    for (const agent of this.agents.values()) agent.destroy()
  }

  /** Sends a GET, and resolves when the headers are there. Rejects with FetchError. */
  get(
    url: URL,
    headers: Readonly<Record<string, string>>,
    login: Login | undefined,
    signal: AbortSignal,
  ): Promise<IncomingMessage> {
    const isOwn = url.hostname === this.ownHost
    if (!isOwn && isNear(url.hostname)) return Promise.reject(new FetchError('refused', NEAR))
    const isSecure = url.protocol === 'https:'
    return new Promise((resolve, reject) => {
      const request = (isSecure ? https : http).request(url, {
        agent: this.agentFor(isSecure, isOwn),
        headers: { ...headers, 'accept-encoding': 'identity', 'user-agent': 'vimgfs' },
        maxHeaderSize: MAX_HEADER_BYTES,
        timeout: Math.min(STALL_MS, this.timeoutMs),
        ...(login && { auth: `${login.user}:${login.password}` }),
        ...(!isOwn && { lookup: lookupFar }),
        ...(this.certificates !== undefined && { ca: this.certificates }),
      })
      const end = () =>
        request.destroy(new FetchError('later', 'the server does not answer in time'))
      if (signal.aborted) end()
      signal.addEventListener('abort', end)
      request.on('timeout', end)
      request.on('close', () => signal.removeEventListener('abort', end))
      request.on('error', error => reject(problemOf(error)))
      request.on('response', answer => {
        answer.on('error', () => {})
        resolve(answer)
      })
      request.end()
    })
  }

  private agentFor(isSecure: boolean, isOwn: boolean): http.Agent {
    const key = `${isSecure}${isOwn}`
    const known = this.agents.get(key)
    if (known) return known
    const options = { keepAlive: true, maxSockets: CONNECTIONS, scheduling: 'lifo' } as const
    const agent = isSecure ? new https.Agent(options) : new http.Agent(options)
    this.agents.set(key, agent)
    return agent
  }
}

/** Connections that could not be made, with words for the user. */
const UNREACHABLE: Readonly<Record<string, string>> = {
  ECONNREFUSED: 'the server refuses the connection',
  ENOTFOUND: 'this host is not known',
  EAI_AGAIN: 'the name server does not answer',
  EHOSTUNREACH: 'the host cannot be reached',
  ENETUNREACH: 'the network cannot be reached',
}

const BROKEN: Readonly<Record<string, string>> = {
  ECONNRESET: 'the server has dropped the connection',
  EPROTO: 'the server does not speak TLS',
  EPIPE: 'the server has dropped the connection',
  ETIMEDOUT: 'the server does not answer in time',
}

/** A connection that could not be made: who opens an image says so at once. */
export class Unreachable extends FetchError {}

/** Returns the FetchError for an error of Node. */
export function problemOf(error: unknown): FetchError {
  if (error instanceof FetchError) return error
  const { code = '', message } = error as NodeJS.ErrnoException
  if (UNREACHABLE[code] !== undefined) return new Unreachable('later', UNREACHABLE[code])
  if (BROKEN[code] !== undefined) return new FetchError('later', BROKEN[code])
  if (code === 'HPE_HEADER_OVERFLOW') return new FetchError('refused', 'its headers have no end')
  if (code === 'ERR_NEAR') return new FetchError('refused', NEAR)
  if (/CERT|TLS|SSL|ALTNAME/.test(code)) {
    return new FetchError('refused', `its certificate is not trusted: ${message}`)
  }
  if (code.startsWith('HPE_')) return new FetchError('later', 'the server does not speak HTTP')
  return new FetchError('later', message)
}
