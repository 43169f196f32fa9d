/**
 * Addresses of images that are not files of this machine: `https://HOST/FOLDER/disk.qcow2`.
 *
 * Addresses in messages, logs and lists of mounts have neither a password nor a query: queries of presigned
 * addresses are keys.
 */
import path from 'node:path'
import { ImageError } from '../errors.js'

/** The beginning of the text of an address. */
const SCHEME = /^([a-z][a-z0-9+.-]*):\/\//i

/** Returns the scheme of an address in lower case, without the colon; undefined for the path of a file. */
export const schemeOf = (text: string): string | undefined => SCHEME.exec(text)?.[1]?.toLowerCase()

/** Returns an address as it may be shown. */
export function shownAddress(text: string): string {
  const scheme = schemeOf(text)
  if (scheme === undefined) return text
  const rest = text.slice(scheme.length + 3)
  const [bare = ''] = rest.split(/[?#]/, 1)
  const slash = bare.indexOf('/')
  const host = slash < 0 ? bare : bare.slice(0, slash)
  return `${scheme}://${host.slice(host.lastIndexOf('@') + 1)}${slash < 0 ? '' : bare.slice(slash)}`
}

/** Returns the address of what `name` means in a file at `by`. Throws ImageError if it is none. */
export function resolvedAddress(name: string, by: string): string {
  try {
    return schemeOf(name) === undefined
      ? new URL(name.split('/').map(encodeURIComponent).join('/'), by).href
      : new URL(name).href
  } catch {
    throw new ImageError('REFUSED', `it names "${name}", which is no address`, { path: by })
  }
}

/** Returns the address of the folder that `address` lies in, with a slash at its end. */
export const folderOfAddress = (address: string): string => new URL('.', address).href

/** Reports whether `address` lies below `prefix`, at the same origin. A prefix is a folder, or one file. */
export function isBelow(address: string, prefix: string): boolean {
  const [one, other] = [address, prefix].map(text =>
    URL.canParse(text) ? new URL(text) : undefined,
  )
  if (!one || !other || one.protocol !== other.protocol || one.host !== other.host) return false
  const { pathname } = other
  // An encoded slash or dot may mean to a server what a plain one means.
  if (/%(2e|2f|5c)/i.test(one.pathname) || one.pathname.includes('\\')) return false
  return (
    one.pathname === pathname ||
    one.pathname.startsWith(pathname.endsWith('/') ? pathname : `${pathname}/`)
  )
}

/** Returns the absolute name of an image: of a file its path, of a remote one its address as it is shown. */
export const absoluteName = (name: string): string =>
  schemeOf(name) === undefined ? path.resolve(name) : shownAddress(name)
