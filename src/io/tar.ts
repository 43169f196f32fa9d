/**
 * The list of the files in an uncompressed tar archive: where each one's bytes lie. An archive is hostile input.
 *
 * Sources: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Header Block"; the GNU tar manual, "Basic Tar Format" and
 * "Storing Sparse Files".
 */
import { ImageError } from '../errors.js'
import type { Store } from '../io/store.js'

const BLOCK_BYTES = 512
/** Headers that are read, those of long names included. */
const MAX_HEADERS = 2 ** 18
/** Bytes of the names and attributes that come before a file. */
const MAX_EXTRA_BYTES = 2 ** 20

export interface TarMember {
  /** Without `./` and `/` at its start. */
  readonly name: string
  /** sparse: its bytes do not lie in the archive as they are. other: a folder, a link, a device. */
  readonly kind: 'file' | 'sparse' | 'other'
  /** The place of its first byte in the archive. */
  readonly startAt: number
  readonly sizeBytes: number
}

/** The meaning of a header, with the headers before it. */
interface Attributes {
  readonly name?: string
  readonly sizeBytes?: number
  readonly isSparse?: boolean
}

/** Reports whether the first bytes of a file are a header of a tar archive, damaged or not. */
export function isTar(store: Store): boolean {
  const block = Buffer.alloc(BLOCK_BYTES)
  if (store.read(block, 0, BLOCK_BYTES, 0) < BLOCK_BYTES || isEmpty(block)) return false
  return hasMagic(block) || hasRightSum(block)
}

/**
 * Returns the files of the archive in their order. Of a file that the end of the archive cuts off, `startAt` and `sizeBytes`
 * say so. Throws ImageError for damage, SystemError.
 */
export function membersOf(store: Store): TarMember[] {
  const members: TarMember[] = []
  const reader = new Headers(store)
  for (let member = reader.next(); member; member = reader.next()) members.push(member)
  return members
}

/** Returns the name of a member, or of a file beside one, in its one form. */
export const memberName = (name: string): string =>
  name
    .split('/')
    .filter(part => part !== '' && part !== '.')
    .join('/')

/** Types of members (`typeflag`) whose bytes are those of a file. */
const FILES = new Set(['0', '\0', '7'])
/** Types that never have bytes, whatever their header says: links, devices, folders, FIFOs. */
const WITHOUT_BYTES = new Set(['2', '3', '4', '5', '6'])

class Headers {
  private at = 0
  private count = 0
  private readonly block = Buffer.alloc(BLOCK_BYTES)
  private global: Attributes = {}

  constructor(private readonly store: Store) {}

  /** Returns the next member; undefined at the end. */
  next(): TarMember | undefined {
    let own: Attributes = {}
    for (;;) {
      const { block, at } = this
      if (!this.readHeader()) return undefined
      const type = block.toString('latin1', 156, 157)
      const stated = numberAt(block, 124, 12)
      if (stated === undefined) throw this.damaged('its size is no number', at)
      if (type === 'x' || type === 'X') own = { ...own, ...this.attributes(stated, at) }
      else if (type === 'g') this.global = { ...this.global, ...this.attributes(stated, at) }
      else if (type === 'L') own = { ...own, name: this.longName(stated, at) }
      else if (type === 'K') this.skip(this.extra(stated, at).length)
      else return this.member(type, { ...this.global, ...own }, stated)
    }
  }

  private member(type: string, given: Attributes, stated: number): TarMember {
    const { block, store } = this
    const full = given.name ?? nameOf(block)
    const isSparse = given.isSparse === true || type === 'S'
    if (type === 'S') this.skipMaps()
    const sizeBytes = WITHOUT_BYTES.has(type) ? 0 : (given.sizeBytes ?? stated)
    const startAt = this.at
    if (!Number.isSafeInteger(startAt + sizeBytes)) throw this.damaged('it is too large', startAt)
    this.skip(sizeBytes)
    // The members after a file that is cut off cannot be found.
    if (startAt + sizeBytes > store.sizeBytes) this.at = store.sizeBytes
    // Old programs tell folders by the slash.
    const isFile = FILES.has(type) && !full.endsWith('/')
    const kind = isSparse ? 'sparse' : isFile ? 'file' : 'other'
    return { name: memberName(full), kind, startAt, sizeBytes }
  }

  /** Reads a header into `block`, and goes past it. Returns false at the end of the archive. */
  private readHeader(): boolean {
    const { block, at, store } = this
    const got = store.read(block, 0, BLOCK_BYTES, at)
    if (got === 0) return false
    if (got < BLOCK_BYTES) throw this.damaged('the archive ends within it', at)
    if (isEmpty(block)) return false
    if (!hasRightSum(block)) throw this.damaged('its checksum is wrong', at)
    if (++this.count > MAX_HEADERS) {
      const what = `it has more than ${MAX_HEADERS} files`
      throw new ImageError('UNSUPPORTED', what, { path: store.path, hint: EXTRACT })
    }
    this.at += BLOCK_BYTES
    return true
  }

  /** Goes past the blocks that go on with the map of a sparse file. */
  private skipMaps(): void {
    const { block, store } = this
    let isMore = block[482] !== 0
    while (isMore && store.read(block, 0, BLOCK_BYTES, this.at) === BLOCK_BYTES) {
      this.at += BLOCK_BYTES
      isMore = block[504] !== 0
    }
  }

  private skip(sizeBytes: number): void {
    this.at += Math.ceil(sizeBytes / BLOCK_BYTES) * BLOCK_BYTES
  }

  /** Returns the bytes after a header, without going past them. */
  private extra(sizeBytes: number, at: number): Buffer {
    if (sizeBytes > MAX_EXTRA_BYTES) throw this.damaged('it says a name of megabytes', at)
    const bytes = Buffer.alloc(sizeBytes)
    if (this.store.read(bytes, 0, sizeBytes, this.at) < sizeBytes) {
      throw this.damaged('the archive ends within it', at)
    }
    return bytes
  }

  private longName(sizeBytes: number, at: number): string {
    const bytes = this.extra(sizeBytes, at)
    this.skip(sizeBytes)
    return cText(bytes)
  }

  /** Reads records of the form "LENGTH KEY=VALUE\n". */
  private attributes(sizeBytes: number, at: number): Attributes {
    const bytes = this.extra(sizeBytes, at)
    this.skip(sizeBytes)
    const wrong = () => this.damaged('its attributes cannot be read', at)
    let name: string | undefined
    let size: number | undefined
    let isSparse = false
    for (let from = 0; from < bytes.length; ) {
      const blank = bytes.indexOf(0x20, from)
      const digits = bytes.toString('latin1', from, blank < 0 ? from : Math.min(blank, from + 8))
      const length = /^[1-9]\d*$/.test(digits) ? Number(digits) : 0
      const end = from + length
      const equals = bytes.indexOf(0x3d, blank)
      if (equals < 0 || equals >= end || end > bytes.length || bytes[end - 1] !== 0x0a)
        throw wrong()
      const key = bytes.toString('utf8', blank + 1, equals)
      const value = bytes.toString('utf8', equals + 1, end - 1)
      if (key === 'path' && !isSparse) name = value
      if (key === 'size') {
        if (!/^\d{1,16}$/.test(value) || !Number.isSafeInteger(Number(value))) throw wrong()
        size = Number(value)
      }
      if (key.startsWith('GNU.sparse.') || key === 'SCHILY.realsize') isSparse = true
      if (key === 'GNU.sparse.name') name = value
      from = end
    }
    return {
      ...(name !== undefined && { name }),
      ...(size !== undefined && { sizeBytes: size }),
      ...(isSparse && { isSparse }),
    }
  }

  private damaged(what: string, at: number): ImageError {
    const { path } = this.store
    const problem = `this tar archive is damaged: of the header at byte ${at}, ${what}`
    return new ImageError('CORRUPT', problem, { path, hint: 'restore it from a copy' })
  }
}

const EXTRACT = 'take the disk out of it with tar -xf, and name that'

const hasMagic = (block: Buffer): boolean => block.toString('latin1', 257, 262) === 'ustar'

function isEmpty(block: Buffer): boolean {
  return block.every(byte => byte === 0)
}

/** The sum counts its own 8 bytes as blanks. Some old programs took bytes for signed numbers. */
function hasRightSum(block: Buffer): boolean {
  const stated = numberAt(block, 148, 8)
  let unsigned = 8 * 0x20
  let signed = unsigned
  for (let at = 0; at < BLOCK_BYTES; at++) {
    if (at >= 148 && at < 156) continue
    unsigned += block[at] as number
    signed += block.readInt8(at)
  }
  return stated === unsigned || stated === signed
}

/** Reads a field of octal digits, or of GNU's base 256. Returns undefined if it is neither, or too large. */
function numberAt(block: Buffer, at: number, length: number): number | undefined {
  const first = block[at] as number
  if ((first & 0x80) !== 0) {
    // Below 0, or above 2^53.
    if ((first & 0x7f) !== 0) return undefined
    let value = 0
    for (let i = 1; i < length; i++) value = value * 256 + (block[at + i] as number)
    return Number.isSafeInteger(value) ? value : undefined
  }
  const text = block.toString('latin1', at, at + length)
  const digits = /^ *([0-7]*)[ \0]*$/.exec(text)?.[1]
  return digits === undefined ? undefined : Number.parseInt(digits || '0', 8)
}

/** Returns the name of a header; GNU's headers have other things where POSIX has the name's start. */
function nameOf(block: Buffer): string {
  const name = cText(block.subarray(0, 100))
  const isPosix = block.toString('latin1', 257, 265) === 'ustar\x0000'
  const prefix = isPosix ? cText(block.subarray(345, 500)) : ''
  return prefix === '' ? name : `${prefix}/${name}`
}

function cText(bytes: Buffer): string {
  const end = bytes.indexOf(0)
  return bytes.toString('utf8', 0, end < 0 ? bytes.length : end)
}
