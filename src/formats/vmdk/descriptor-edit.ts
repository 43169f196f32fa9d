/**
 * What changes in a descriptor when its disk is written: in place, without a change of its length.
 *
 * A new CID tells the disk's children, and programs that keep copies of it, that it is not what it was
 * (libyal, VMDK format, "The descriptor file"). VMware's programs have it as the last 8 digits of
 * ddb.longContentID, too. A file that tracks changes (changeTrackPath) knows nothing of what is written
 * here, so a descriptor must not name it any longer.
 *
 * A line is found as descriptor.ts finds it, since that is what the reader goes by. Each edit leaves a
 * good descriptor, also alone: a power cut may keep any of them, or of their digits.
 */
import { randomInt } from 'node:crypto'
import { MAX_VMDK_DESCRIPTOR_BYTES } from '../limits.js'
import { cidValue, NO_PARENT_CID } from './descriptor.js'
import { keyValue, textBytes, trimBlanks } from './text.js'

/** Offsets are in bytes from the start of what was given, a byte order mark included. */
export interface DescriptorPlaces {
  /** Of the digits of the first line CID, and how many there are; undefined where there is none. */
  readonly cid: { readonly at: number; readonly digits: number } | undefined
  /** Of the last 8 digits of ddb.longContentID, where that is 32 hex digits. */
  readonly longContentIdAt: number | undefined
  /** Of the first byte of each line whose key is changeTrackPath. */
  readonly changeTrackAt: readonly number[]
}

/** `bytes` in place of as many that are `at` bytes from the descriptor's start. */
export interface DescriptorEdit {
  readonly at: number
  readonly bytes: Buffer
}

export interface EditOptions {
  /** Whether the lines changeTrackPath become comments. */
  readonly dropsChangeTracking: boolean
  /** A number of so many hex digits at most; random unless it is given. */
  readonly random?: (digits: number) => number
}

/** Said to send the reader to the long content ID. */
const LONG_CID = 0xfffffffe
const CID_DIGITS = 8
const LONG_ID_DIGITS = 32

/** @param bytes of a descriptor that parseDescriptor takes; its text ends at the first NUL */
export function descriptorPlaces(bytes: Buffer): DescriptorPlaces {
  const text = textBytes(bytes.subarray(0, MAX_VMDK_DESCRIPTOR_BYTES))
  const start = text.byteOffset - bytes.byteOffset
  // By key in lower case: of a key that occurs twice the first one counts.
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
 * What has to be written before the disk changes: a new CID, and what follows from it. The CID comes
 * first. A descriptor without one keeps its longContentID, too: there is no place for a new CID.
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
  /** Where it begins. */
  readonly at: number
}

/** A line's key in lower case, its value, and where that begins in the line. */
function valueOf(line: string): (Value & { key: string }) | undefined {
  const trimmed = trimBlanks(line)
  const found = keyValue(trimmed)
  if (!found) return undefined
  // No key holds `=`, and blanks and one quote at most stand between it and the value.
  const behindKey = trimmed.indexOf('=') + 1
  const blanks = /^[ \t]*"?/.exec(trimmed.slice(behindKey)) as RegExpExecArray
  const at = line.indexOf(trimmed) + behindKey + blanks[0].length
  return { key: found.key.toLowerCase(), value: found.value, at }
}

const isHex = (text: string, min: number, max: number): boolean =>
  text.length >= min && text.length <= max && /^[0-9a-f]+$/i.test(text)

const randomCid = (digits: number): number => randomInt(16 ** digits)

/** Other digits than `old`, as many, that have no meaning of their own. More than 8 begin with zeros. */
function newCid(old: string, random: (digits: number) => number): string {
  const length = Math.min(old.length, CID_DIGITS)
  const taken = [cidValue(old) as number, NO_PARENT_CID, LONG_CID, ...(length > 1 ? [0] : [])]
  let cid = random(length)
  while (taken.includes(cid)) cid = (cid + 1) % 16 ** length
  return cid.toString(16).padStart(old.length, '0')
}
