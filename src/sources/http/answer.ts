/** Reads the headers of answers. */
import type { IncomingHttpHeaders } from 'node:http'

export interface ContentRange {
  readonly first: number
  readonly last: number
  /** The size of the whole object; undefined if the server does not say it. */
  readonly sizeBytes: number | undefined
}

/** Returns what Content-Range says of a range (RFC 9110, 14.4); undefined if it says none. */
export function contentRange(header: string | undefined): ContentRange | undefined {
  const [, first, last, size] =
    /^\s*bytes\s+(\d{1,16})-(\d{1,16})\/(\d{1,16}|\*)\s*$/i.exec(header ?? '') ?? []
  if (first === undefined) return undefined
  const range = {
    first: Number(first),
    last: Number(last),
    sizeBytes: size === '*' ? undefined : Number(size),
  }
  const isSound =
    Number.isSafeInteger(range.last) &&
    range.first <= range.last &&
    (range.sizeBytes === undefined ||
      (Number.isSafeInteger(range.sizeBytes) && range.last < range.sizeBytes))
  return isSound ? range : undefined
}

/** Tells one state of an object from others. */
export interface Validators {
  /** Strong or weak, as the server gives it. */
  readonly etag: string | undefined
  readonly lastModified: string | undefined
}

const MAX_VALIDATOR = 1024

export function validatorsOf({
  etag,
  'last-modified': lastModified,
}: IncomingHttpHeaders): Validators {
  const short = (text: string | undefined) =>
    text !== undefined && text.length <= MAX_VALIDATOR && text !== '' ? text : undefined
  return { etag: short(etag), lastModified: short(lastModified) }
}

/** Reports whether an ETag changes with each byte (RFC 9110, 8.8.1). */
export const isStrong = (etag: string | undefined): boolean =>
  etag !== undefined && !/^W\//i.test(etag)

/** Times closer than this to the answer's own may be those of two states (RFC 9110, 8.8.2.2). */
const SETTLED_MS = 60_000

/**
 * Returns what tells the object from others for sure, also in days: a strong ETag, or a time of modification that lies well in the
 * past, with the size. Undefined if there is neither.
 */
export function lastingValidator(
  { etag, lastModified }: Validators,
  sizeBytes: number,
  date: string | undefined,
): string | undefined {
  if (isStrong(etag)) return `etag ${etag} ${sizeBytes}`
  const modified = Date.parse(lastModified ?? '')
  const now = Date.parse(date ?? '')
  const isSettled = modified + SETTLED_MS <= now
  return isSettled ? `modified ${lastModified} ${etag ?? ''} ${sizeBytes}` : undefined
}

const LONGEST_PAUSE_MS = 30_000

/** Returns how long Retry-After says to wait, in milliseconds, at most half a minute; 0 if it says nothing. */
export function retryAfterMs(header: string | undefined): number {
  if (header === undefined) return 0
  const seconds = /^\s*\d{1,9}\s*$/.test(header) ? Number(header) : Number.NaN
  const ms = Number.isNaN(seconds) ? Date.parse(header) - Date.now() : seconds * 1000
  return Number.isNaN(ms) ? 0 : Math.min(Math.max(ms, 0), LONGEST_PAUSE_MS)
}
