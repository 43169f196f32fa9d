/**
 * The descriptor: which files hold which part of the disk, and which disk is the parent (VMware, Virtual Disk Format 5.0,
 * "The Descriptor File"; libyal, VMDK format, "The descriptor file").
 *
 * It is read as leniently as VMware's tools do, except extents: a line that may be an extent is never skipped, since without
 * it all later extents would appear at the wrong place of the disk.
 */
import { type ErrorCode, ImageError, printable } from '../../errors.js'
import { READ_BY_QEMU } from '../disk-size.js'
import {
  MAX_DDB_ENTRIES,
  MAX_VMDK_DESCRIPTOR_BYTES,
  MAX_DESCRIPTOR_LINE_LENGTH,
  MAX_EXTENT_LINES,
  MAX_FILE_NAME_BYTES,
} from '../limits.js'
import { isPadding, keyValue, readText, textBytes, trimBlanks } from './text.js'
import { ENCRYPTION_KEYS, refuseEncrypted } from './encrypted.js'
import { SECTOR_BYTES } from '../../sector.js'

/** A parentCID that means "no parent". */
export const NO_PARENT_CID = 0xffffffff

const ACCESSES = ['RW', 'RDONLY', 'NOACCESS'] as const
const TYPES = [
  'FLAT',
  'SPARSE',
  'ZERO',
  'VMFS',
  'VMFSSPARSE',
  'VMFSRDM',
  'VMFSRAW',
  'SESPARSE',
] as const
export type ExtentAccess = (typeof ACCESSES)[number]
export type ExtentType = (typeof TYPES)[number]

export interface ExtentLine {
  readonly access: ExtentAccess
  /** The size of its part of the disk. */
  readonly sectors: number
  readonly type: ExtentType
  /** The name as written; undefined for ZERO, never empty. */
  readonly fileName: string | undefined
  /** Where it begins in the file; 0 if the line does not say. */
  readonly startSectors: number
  /** The whole line, for messages. */
  readonly line: string
}

export interface Descriptor {
  readonly version: number
  /** As written; undefined if the file does not say. */
  readonly encoding: string | undefined
  /** 32 bits that change whenever the disk changes; 0 if the file does not say. */
  readonly cid: number
  /** The parent's CID; NO_PARENT_CID if there is no parent, or if the file does not say. */
  readonly parentCid: number
  /** As written; empty if the file does not say. It does not decide how the extents are read. */
  readonly createType: string
  readonly parentHint: string | undefined
  readonly changeTrackPath: string | undefined
  readonly longContentId: string | undefined
  /** The values by key, in lower case and without `ddb.`. The object has no prototype. */
  readonly ddb: Readonly<Record<string, string>>
  /** The extents in the order of the disk; at least one. */
  readonly extents: readonly ExtentLine[]
}

/** Characters that no text contains: control characters except tabs, line ends and the end mark of DOS. */
const BINARY = /[\x00-\x08\x0b\x0c\x0e-\x19\x1b-\x1f\x7f]/

/** Reports whether a file that begins with `head` is a descriptor. */
export function isDescriptor(head: Buffer): boolean {
  const text = textBytes(head)
  // Only padding may follow, as after a descriptor within an extent.
  if (!isPadding(head.subarray(text.byteOffset - head.byteOffset + text.length))) return false
  const characters = text.toString('latin1')
  if (BINARY.test(characters)) return false
  for (const line of characters.split(/[\r\n]/)) {
    const rest = trimBlanks(line)
    if (/^#[ \t]*disk[ \t]+descriptorfile/i.test(rest)) return true
    if (rest !== '' && !rest.startsWith('#')) return /^version[ \t]*=/i.test(rest)
  }
  return false
}

/** The extent that contains a descriptor. */
export interface OwnExtent {
  readonly fileName: string
  readonly sectors: number
}

/**
 * Parses a descriptor from its own file or from within an extent. Throws ImageError.
 *
 * @param own the extent that contains it. Its header says all that its line would say, so a single damaged or missing line
 *   does not matter
 */
export function parseDescriptor(bytes: Buffer, path: string, own?: OwnExtent): Descriptor {
  const fail: Fail = (message, code = 'CORRUPT', hint = RESTORE) => {
    throw new ImageError(code, message, { path, hint })
  }
  const text = textBytes(bytes.subarray(0, MAX_VMDK_DESCRIPTOR_BYTES + 1))
  if (text.length > MAX_VMDK_DESCRIPTOR_BYTES) {
    fail(`the descriptor has more than ${MAX_VMDK_DESCRIPTOR_BYTES} bytes`)
  }
  const { encoding, lines } = readText(text, 'encoding')
  const tooLong = lines.find(line => line.length > MAX_DESCRIPTOR_LINE_LENGTH)
  if (tooLong !== undefined) {
    fail(`a line has more than ${MAX_DESCRIPTOR_LINE_LENGTH} characters: ${quoted(tooLong)}`)
  }
  const { keys, ddb } = readKeys(lines, fail)
  refuseEncrypted(keys, ddb.iofilters, path)
  return {
    version: versionOf(keys, fail),
    encoding,
    cid: cidOf(keys, 'CID', 0, fail),
    parentCid: cidOf(keys, 'parentCID', NO_PARENT_CID, fail),
    createType: keys.get('createtype') ?? '',
    parentHint: pathOf(keys, 'parentFileNameHint', fail),
    changeTrackPath: pathOf(keys, 'changeTrackPath', fail),
    longContentId: ddb.longcontentid,
    ddb,
    extents: readExtents(lines, path, own, fail),
  }
}

const RESTORE =
  'restore the descriptor from a copy, or write it anew for the extents that are there'
type Fail = (message: string, code?: ErrorCode, hint?: string) => never

const QUOTED_LENGTH = 160

/** Returns `text` for a message. */
function quoted(text: string): string {
  const cut = text.length > QUOTED_LENGTH ? `${text.slice(0, QUOTED_LENGTH)}…` : text
  return `'${printable(cut)}'`
}

type Keys = ReadonlyMap<string, string>

/** Returns the values by key in lower case. If a key occurs twice, the first one counts, as for QEMU. */
function readKeys(lines: readonly string[], fail: Fail): { keys: Keys; ddb: Descriptor['ddb'] } {
  const keys = new Map<string, string>()
  const ddb: Record<string, string> = Object.create(null)
  let ddbCount = 0
  for (const line of lines) {
    const found = keyValue(line)
    if (!found) continue
    const key = found.key.toLowerCase()
    if (!key.startsWith(DDB)) {
      if (KNOWN_KEYS.includes(key) && !keys.has(key)) keys.set(key, found.value)
      continue
    }
    const name = key.slice(DDB.length)
    if (name in ddb) continue
    if (++ddbCount > MAX_DDB_ENTRIES) {
      fail(`the descriptor has more than ${MAX_DDB_ENTRIES} ddb entries`)
    }
    ddb[name] = found.value
  }
  return { keys, ddb }
}

const DDB = 'ddb.'
const KNOWN_KEYS = [
  'version',
  'cid',
  'parentcid',
  'createtype',
  'parentfilenamehint',
  'changetrackpath',
  'isnativesnapshot',
  ...ENCRYPTION_KEYS,
]

function versionOf(keys: Keys, fail: Fail): number {
  const value = keys.get('version') ?? '1'
  return /^[0-9]{1,9}$/.test(value)
    ? Number(value)
    : fail(`the descriptor's version is ${quoted(value)}`)
}

/** The hex digits of a CID, of any case. Xen Orchestra writes up to ten, and some programs write `0x` before them. */
const CID = /^(?:0x)?([0-9a-f]{1,16})$/i

/** Returns the number of a CID as QEMU and VirtualBox read it: the lower 32 bits. */
export function cidValue(text: string): number | undefined {
  const digits = CID.exec(text)?.[1]
  return digits === undefined ? undefined : Number.parseInt(digits.slice(-8), 16)
}

function cidOf(keys: Keys, name: 'CID' | 'parentCID', missing: number, fail: Fail): number {
  const value = keys.get(name.toLowerCase())
  if (value === undefined) return missing
  return (
    cidValue(value) ?? fail(`the descriptor's ${name} is ${quoted(value)}, which are no hex digits`)
  )
}

function pathOf(keys: Keys, name: string, fail: Fail): string | undefined {
  const value = keys.get(name.toLowerCase())
  if (value === undefined || value === '') return undefined
  if (Buffer.byteLength(value) > MAX_FILE_NAME_BYTES) {
    fail(`the descriptor's ${name} has more than ${MAX_FILE_NAME_BYTES} bytes: ${quoted(value)}`)
  }
  return value
}

/** The most sectors of a disk whose size in bytes a number represents exactly. */
const MAX_SECTORS = Math.floor(Number.MAX_SAFE_INTEGER / SECTOR_BYTES)

function readExtents(
  lines: readonly string[],
  path: string,
  own: OwnExtent | undefined,
  fail: Fail,
): ExtentLine[] {
  const extents: ExtentLine[] = []
  let total = 0
  const extentLines = lines.filter(isExtentLine)
  if (own && extentLines.length <= 1) return [ownExtent(extentLines[0], own, path)]
  for (const line of extentLines) {
    if (extents.length === MAX_EXTENT_LINES) {
      fail(`the descriptor has more than ${MAX_EXTENT_LINES} extents`)
    }
    const extent = parseExtent(line, fail)
    total += extent.sectors
    if (total > MAX_SECTORS) refuseSize(`with the extent ${quoted(line)} it has over`, fail)
    extents.push(extent)
  }
  if (extents.length === 0) {
    fail('the descriptor names no extent: no line of it says where the data are')
  }
  return extents
}

/** Returns the only extent of a disk, from its line, or from the header if the line makes no sense. */
function ownExtent(line: string | undefined, own: OwnExtent, path: string): ExtentLine {
  const unusable = new ImageError('CORRUPT', 'the extent line makes no sense', { path })
  const fail: Fail = () => {
    throw unusable
  }
  try {
    if (line !== undefined) return parseExtent(line, fail)
  } catch (error) {
    if (error !== unusable) throw error
  }
  // "RO" is not a word of the format, but its meaning is clear.
  const isReadOnly = /^[ \t]*R(?!W)|^[ \t]*NO/i.test(line ?? '')
  return {
    access: isReadOnly ? 'RDONLY' : 'RW',
    sectors: own.sectors,
    type: 'SPARSE',
    fileName: own.fileName,
    startSectors: 0,
    line: line ?? '',
  }
}

/** Refuses a disk that is too large: that is not damage. */
const refuseSize = (what: string, fail: Fail): never =>
  fail(`the disk is too large: ${what} 2^53 bytes (8 PiB)`, 'UNSUPPORTED', READ_BY_QEMU)

const isAccess = (word: string): word is ExtentAccess => ACCESSES.some(access => access === word)
const isType = (word: string): word is ExtentType => TYPES.some(type => type === word)

/** Reports whether `line` is meant as an extent, even if damaged: by its access, its size or its type. */
function isExtentLine(line: string): boolean {
  const key = keyValue(line)?.key.toUpperCase()
  if (key !== undefined && !isAccess(key)) return false
  const words = line
    .toUpperCase()
    .split(/[ \t"]+/, 5)
    .filter(word => word !== '')
  return isAccess(words[0] ?? '') || /^[0-9]+$/.test(words[1] ?? '') || words.some(isType)
}

function parseExtent(line: string, fail: Fail): ExtentLine {
  const match = /^([^ \t"]+)[ \t]+([^ \t"]+)[ \t]+([^ \t"]+)[ \t]*/.exec(line)
  if (!match) return fail(`an extent is cut short: ${quoted(line)}`)
  const [all, accessWord = '', sectorsWord = '', typeWord = ''] = match
  const access = accessWord.toUpperCase()
  const type = typeWord.toUpperCase()
  if (!isAccess(access)) return fail(`an extent's access is not known: ${quoted(line)}`)
  if (!isType(type)) {
    return fail(`an extent's type is not known: ${quoted(line)}`, 'UNSUPPORTED')
  }
  const sectors = /^[0-9]+$/.test(sectorsWord) ? Number(sectorsWord) : Number.NaN
  if (Number.isNaN(sectors)) fail(`an extent's size is no number: ${quoted(line)}`)
  if (sectors > MAX_SECTORS) refuseSize(`the extent ${quoted(line)} has over`, fail)
  if (type === 'ZERO') {
    return { access, sectors, type, fileName: undefined, startSectors: 0, line }
  }
  const { fileName, startSectors } = parseFile(line, all.length, type, fail)
  if (startSectors + sectors > MAX_SECTORS) {
    fail(`an extent reaches beyond 2^53 bytes of its file: ${quoted(line)}`)
  }
  return { access, sectors, type, fileName, startSectors, line }
}

/**
 * Returns the name in quotes, which may contain quotes itself, and the offset after it. What follows the offset (the IDs of a
 * partition and a device) is not needed. The name of a FLAT extent ends at the last quote before an offset. Other extents
 * usually have no offset; their name ends at the last quote that can end it.
 */
function parseFile(
  line: string,
  at: number,
  type: ExtentType,
  fail: Fail,
): { fileName: string; startSectors: number } {
  const ends = line[at] === '"' ? nameEnds(line, at + 1) : []
  const end = (type === 'FLAT' && ends.findLast(e => e.offset !== undefined)) || ends.at(-1)
  if (!end || end.at === at + 1) return fail(`an extent's file has no name: ${quoted(line)}`)
  const fileName = line.slice(at + 1, end.at)
  if (Buffer.byteLength(fileName) > MAX_FILE_NAME_BYTES) {
    fail(`an extent's file name has more than ${MAX_FILE_NAME_BYTES} bytes: ${quoted(line)}`)
  }
  return { fileName, startSectors: end.offset ?? 0 }
}

/** Returns the quotes from `from` on that can end a name: an offset, a comment, or nothing follows. */
function nameEnds(line: string, from: number): { at: number; offset: number | undefined }[] {
  const ends: { at: number; offset: number | undefined }[] = []
  const rest = /"[ \t]*(?:(?<=[ \t])([0-9]+)(?=[ \t#]|$)|#|$)/y
  for (let at = line.indexOf('"', from); at >= 0; at = line.indexOf('"', at + 1)) {
    rest.lastIndex = at
    const match = rest.exec(line)
    if (match) ends.push({ at, offset: match[1] === undefined ? undefined : Number(match[1]) })
  }
  return ends
}
