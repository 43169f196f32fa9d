/**
 * The changes to a descriptor when its disk is written: in place, without changing its length.
 *
 * A new CID tells children of the disk, and programs that keep copies of it, that it has changed (libyal, VMDK format, "The
 * descriptor file"). VMware's programs also use it as the last 8 digits of ddb.longContentID. A file that tracks changes
 * (changeTrackPath) does not learn about our writes, so the descriptor must not name it any more.
 *
 * Lines are found as descriptor.ts finds them, because that is what the reader uses. Each edit alone leaves a valid
 * descriptor: a power cut may keep any subset of the edits, or of their digits.
 */
import { randomInt } from 'node:crypto'
import { MAX_VMDK_DESCRIPTOR_BYTES } from '../limits.js'
import { cidValue, NO_PARENT_CID } from './descriptor.js'
import { keyValue, textBytes, trimBlanks } from './text.js'

/** Offsets are in bytes from the start of the given text, including a byte order mark. */
export interface DescriptorPlaces {
  /** The digits of the first line CID: their place and number; undefined if there is none. */
  readonly cid: { readonly at: number; readonly digits: number } | undefined
  /** The place of the last 8 digits of ddb.longContentID, if that has 32 hex digits. */
  readonly longContentIdAt: number | undefined
  /** The places of the lines whose key is changeTrackPath. */
  readonly changeTrackAt: readonly number[]
}

/** Replaces bytes of the descriptor: `bytes` go to `at`, in bytes from its start. */
export interface DescriptorEdit {
  readonly at: number
  readonly bytes: Buffer
}

export interface EditOptions {
  /** Whether to turn the lines changeTrackPath into comments. */
  readonly dropsChangeTracking: boolean
  /** Returns a number of at most so many hex digits. The default is random. */
  readonly random?: (digits: number) => number
}

/** This CID is said to refer the reader to the long content ID. */
const LONG_CID = 0xfffffffe
const CID_DIGITS = 8
const LONG_ID_DIGITS = 32

/** @param bytes a descriptor that parseDescriptor accepts; its text ends at the first NUL */
export function descriptorPlaces(bytes: Buffer): DescriptorPlaces {
  const text = textBytes(bytes.subarray(0, MAX_VMDK_DESCRIPTOR_BYTES))
  const start = text.byteOffset - bytes.byteOffset
  // By key in lower case. If a key occurs twice, the first one counts.
  const values = new Map<string, Value>()
  const changeTrackAt: number[] = []
  for (const { index, 0: line } of text.toString('latin1').matchAll(/[^\r\n]+/g)) {
    const found = valueOf(line)
    if (!found) continue
    const { key, value, at } = found
    if (key === 'changetrackpath') changeTrackAt.push(start + index)
    if (!values.has(key)) values.set(key, { value, at: start + index + at })
  }
  const cid = values.get('cid')
  const longId = values.get('ddb.longcontentid')
  const prefix = /^0x/i.test(cid?.value ?? '') ? 2 : 0
  const isCid = cid !== undefined && cidValue(cid.value) !== undefined
  return {
    cid: isCid ? { at: cid.at + prefix, digits: cid.value.length - prefix } : undefined,
    longContentIdAt:
      longId && isHex(longId.value, LONG_ID_DIGITS, LONG_ID_DIGITS)
        ? longId.at + LONG_ID_DIGITS - CID_DIGITS
        : undefined,
    changeTrackAt,
  }
}

/**
 * Returns the edits to write before the disk changes: a new CID first, and what follows from it. A descriptor without a CID
 * also keeps its longContentID, because it has no place for a new CID.
 */
export function descriptorEdits(bytes: Buffer, options: EditOptions): DescriptorEdit[] {
  const { cid, longContentIdAt, changeTrackAt } = descriptorPlaces(bytes)
  const edits: DescriptorEdit[] = []
  if (cid) {
    const old = bytes.toString('latin1', cid.at, cid.at + cid.digits)
    const digits = newCid(old, options.random ?? randomCid)
    edits.push({ at: cid.at, bytes: Buffer.from(digits) })
    if (longContentIdAt !== undefined) {
      edits.push({
        at: longContentIdAt,
        bytes: Buffer.from(digits.padStart(CID_DIGITS, '0').slice(-CID_DIGITS)),
      })
    }
  }
  if (options.dropsChangeTracking) {
    edits.push(...changeTrackAt.map(at => ({ at, bytes: Buffer.from('#') })))
  }
  return edits
}

interface Value {
  readonly value: string
  /** The place where it begins. */
  readonly at: number
}

/** Returns a line's key in lower case, its value, and the place of the value in the line. */
function valueOf(line: string): (Value & { key: string }) | undefined {
  const trimmed = trimBlanks(line)
  const found = keyValue(trimmed)
  if (!found) return undefined
  // No key contains `=`. Only blanks and at most one quote are between `=` and the value.
  const behindKey = trimmed.indexOf('=') + 1
  const blanks = /^[ \t]*"?/.exec(trimmed.slice(behindKey)) as RegExpExecArray
  const at = line.indexOf(trimmed) + behindKey + blanks[0].length
  return { key: found.key.toLowerCase(), value: found.value, at }
}

const isHex = (text: string, min: number, max: number): boolean =>
  text.length >= min && text.length <= max && /^[0-9a-f]+$/i.test(text)

const randomCid = (digits: number): number => randomInt(16 ** digits)

/** Returns as many digits as `old` has, different ones without a special meaning. More than 8 begin with zeros. */
function newCid(old: string, random: (digits: number) => number): string {
  const length = Math.min(old.length, CID_DIGITS)
  const taken = [cidValue(old) as number, NO_PARENT_CID, LONG_CID, ...(length > 1 ? [0] : [])]
  let cid = random(length)
  while (taken.includes(cid)) cid = (cid + 1) % 16 ** length
  return cid.toString(16).padStart(old.length, '0')
}
