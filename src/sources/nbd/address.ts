/** Addresses of exports: `nbd://HOST[:PORT]/EXPORT` and `nbd+unix:///EXPORT?socket=PATH`. */
import { spawnSync } from 'node:child_process'
import net from 'node:net'
import { ImageError } from '../../errors.js'
import { shownAddress } from '../address.js'
import { type Endpoint, MAX_PATH_BYTES } from './socket.js'

const DEFAULT_PORT = 10809
/** How long looking for a host's addresses may take. */
const LOOKUP_MS = 20_000

export interface NbdAddress {
  readonly endpoint: Endpoint
  readonly exportName: string
  /** For messages, and the names in a mount. */
  readonly shown: string
}

/** Takes an address apart, and looks its host up. Throws ImageError. */
export function parseAddress(address: string): NbdAddress {
  const bare = shownAddress(address)
  const refuse = (what: string, hint: string): never => {
    throw new ImageError('REFUSED', what, { path: bare, hint })
  }
  const form = 'write nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH'
  if (!URL.canParse(address)) return refuse('this is no address', form)
  const url = new URL(address)
  let exportName: string
  try {
    exportName = decodeURIComponent(url.pathname.replace(/^\//, ''))
  } catch {
    return refuse('the name of the export is not UTF-8', form)
  }
  if (url.username !== '' || url.password !== '') {
    refuse('an NBD server takes no user and no password', form)
  }
  const shown = exportName === '' ? `${bare.replace(/\/$/, '')}/disk` : bare
  const path = url.searchParams.get('socket')
  const others = [...url.searchParams.keys()].filter(key => key !== 'socket')
  if (url.hash !== '' || others.length > 0) refuse('it has parts that mean nothing here', form)
  if (url.protocol === 'nbd+unix:') {
    if (path === null || path === '' || url.host !== '') return refuse('it names no socket', form)
    if (Buffer.byteLength(path) > MAX_PATH_BYTES || path.includes('\0')) {
      refuse(`the path of its socket is longer than ${MAX_PATH_BYTES} bytes`, 'make a link to it')
    }
    return { endpoint: { path }, exportName, shown }
  }
  const host = url.hostname.replace(/^\[(.*)\]$/, '$1')
  if (path !== null || host === '' || host.startsWith('-')) return refuse('it names no host', form)
  const hosts = net.isIP(host) ? [host] : lookUp(host)
  if (hosts.length === 0) refuse(`no address of the host ${host} is known`, 'correct its name')
  const port = url.port === '' ? DEFAULT_PORT : Number(url.port)
  return { endpoint: { hosts, port }, exportName, shown }
}

/** Node looks hosts up in the event loop alone, and opening an image is one call. */
function lookUp(host: string): string[] {
  const { stdout } = spawnSync('getent', ['ahosts', host], { timeout: LOOKUP_MS, encoding: 'utf8' })
  const found = (stdout ?? '').split('\n').map(line => line.split(/\s/, 1)[0] as string)
  return [...new Set(found.filter(each => net.isIP(each) && !each.includes('%')))].slice(0, 8)
}
