/**
 * The messages between commands and the server of a mount, over its socket: lines of JSON. The server begins with its greeting.
 * The command sends one request, and gets any number of remarks and one answer.
 */
import { isExpected, exitCodeOf, oneLine, printable } from '../errors.js'

/** Changes when one side would not understand the other one. */
export const PROTOCOL = 1
/** The longest line that a server reads. */
export const MAX_REQUEST_BYTES = 64 * 1024
/** The longest line that a command reads: a list of 65536 snapshots. */
export const MAX_ANSWER_BYTES = 64 * 2 ** 20

/** The server's first line. */
export interface Greeting {
  readonly protocol: number
  readonly version: string
  readonly pid: number
  /** The image's path, as the server knows it. */
  readonly image: string
  readonly mountpoint: string
  /** The mount's device number, "0:42"; empty if the kernel's list does not show it. */
  readonly device: string
  readonly isWritable: boolean
  /** The names of the files in the mount that show the disk, or parts of it, and may be written. */
  readonly diskFiles: readonly string[]
}

/** A remark: what part of the work is done, 0 to 1, or a line for the user. */
export type Remark = { readonly progress: number } | { readonly say: string }

export type Answer =
  | { readonly result: unknown }
  /** The text is one line; `exit` is the exit code that goes with it. */
  | { readonly error: { readonly message: string; readonly exit: number } }

type Fields = Readonly<Record<string, Field>>
type Field = 'flag' | 'text' | 'texts' | 'number'
type ValueOf<F extends Field> = F extends 'flag'
  ? boolean
  : F extends 'text'
    ? string
    : F extends 'texts'
      ? readonly string[]
      : number

/** The requests, and the fields of each; none may be missing. */
const REQUESTS = {
  status: {},
  refresh: {},
  list: { layers: 'flag' },
  create: { tag: 'text', replace: 'flag' },
  /** Those that the tags and IDs name; or with `byAge` all that are older than `before`, in seconds since 1970. */
  delete: {
    tags: 'texts',
    ids: 'texts',
    byAge: 'flag',
    before: 'number',
    dryRun: 'flag',
    wait: 'flag',
  },
  rename: { tags: 'texts', ids: 'texts', to: 'text' },
  revert: { tags: 'texts', ids: 'texts', discard: 'flag' },
  /** `sign` is + or - if the size changes by so many bytes, and empty if it becomes that. */
  resize: { sign: 'text', bytes: 'number' },
  check: {},
  usage: { tags: 'texts', ids: 'texts', mapCells: 'number' },
  /** Says whether programs may write, after the kernel has been told. */
  remount: { write: 'flag' },
} as const satisfies Record<string, Fields>

type Requests = typeof REQUESTS
export type RequestName = keyof Requests
/** A request: its name in `do`, and its fields. */
export type RequestOf<N extends RequestName> = { readonly do: N } & {
  readonly [K in keyof Requests[N]]: Requests[N][K] extends Field ? ValueOf<Requests[N][K]> : never
}
export type Request = { [N in RequestName]: RequestOf<N> }[RequestName]

/** The bytes that came over the socket are no request. */
export class NoRequest extends Error {
  override name = 'NoRequest'
}

/** Returns the request that a line says. Throws NoRequest. */
export function parseRequest(line: string): Request {
  const given = parseObject(line)
  const name = given.do
  if (typeof name !== 'string' || !Object.hasOwn(REQUESTS, name)) {
    throw new NoRequest(
      `this server, of another version, knows no request ${shown(name)}; unmount the image and mount it again`,
    )
  }
  const fields: Fields = REQUESTS[name as RequestName]
  for (const field of Object.keys(given)) {
    if (field !== 'do' && !Object.hasOwn(fields, field)) {
      throw new NoRequest(`the request ${name} has no field ${shown(field)}`)
    }
  }
  for (const [field, kind] of Object.entries(fields)) {
    if (!Object.hasOwn(given, field) || !isA(kind, given[field])) {
      throw new NoRequest(`the field ${field} of the request ${name} is missing or wrong`)
    }
  }
  return given as unknown as Request
}

/** Returns the object of JSON in `line`. Throws NoRequest. */
export function parseObject(line: string): Record<string, unknown> {
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch {
    throw new NoRequest('this is no JSON')
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new NoRequest('this is no object of JSON')
  }
  return value as Record<string, unknown>
}

function isA(kind: Field, value: unknown): boolean {
  if (kind === 'flag') return typeof value === 'boolean'
  if (kind === 'text') return typeof value === 'string'
  if (kind === 'number') return Number.isSafeInteger(value) && (value as number) >= 0
  return Array.isArray(value) && value.every(one => typeof one === 'string')
}

const shown = (value: unknown): string => printable(JSON.stringify(value)?.slice(0, 60) ?? 'at all')

/** Returns the answer that says why a request has failed. */
export function failure(error: unknown): Answer {
  const isForUser = error instanceof NoRequest || isExpected(error)
  const message = isForUser
    ? oneLine(error)
    : 'the server has met a bug of its own; its log says more'
  return { error: { message, exit: exitCodeOf(error) } }
}
