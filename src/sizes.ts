/** Sizes of disks on the command line, as qemu-img takes them: `20G`, `1.5T`, `+512M`. */
import { UsageError } from './errors.js'

const UNITS: Record<string, bigint> = {
  '': 1n,
  b: 1n,
  k: 1n << 10n,
  m: 1n << 20n,
  g: 1n << 30n,
  t: 1n << 40n,
  p: 1n << 50n,
  e: 1n << 60n,
}
const SECTOR_BYTES = 512

/**
 * Returns the size that `text` says, in bytes. Units are powers of 1024, and a fraction may stand before a unit; a
 * hexadecimal number (0x…) counts bytes. Throws
 * UsageError, also past 2^53, which is more than any format of this program holds.
 * @param what names the argument in the error
 */
export function parseDiskSize(text: string, what: string): number {
  const bytes = bytesOf(text)
  if (bytes === undefined) {
    throw new UsageError(`${what} takes a size such as 512M, 20G or 1.5T, not "${text}"`)
  }
  if (bytes > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new UsageError(`${what}: ${text} is too large for a disk`)
  }
  return Number(bytes)
}

export interface SizeChange {
  /** Undefined for an absolute size. */
  readonly sign: '+' | '-' | undefined
  readonly bytes: number
}

/** Parses a size that may begin with a plus or a minus, for a disk that grows or shrinks by it. Throws UsageError. */
export function parseSizeChange(text: string, what: string): SizeChange {
  const [, sign = '', size = ''] = /^([+-]?)(.*)$/s.exec(text) ?? []
  const bytes = parseDiskSize(size, what)
  return { sign: sign === '+' || sign === '-' ? sign : undefined, bytes }
}

/** Rounds a size up to whole sectors. */
export const toSectors = (bytes: number): number => Math.ceil(bytes / SECTOR_BYTES) * SECTOR_BYTES

function bytesOf(text: string): bigint | undefined {
  if (/^0x[0-9a-f]{1,16}$/i.test(text)) return BigInt(text)
  const match = /^([0-9]{1,20})(?:\.([0-9]{1,9}))?([bkmgtpe]?)(?:i?b)?$/i.exec(text)
  if (!match) return undefined
  const [, whole = '', fraction = '', unit = ''] = match
  const factor = UNITS[unit.toLowerCase()] as bigint
  // Half a byte is no size.
  if (fraction !== '' && factor === 1n) return undefined
  return (
    BigInt(whole) * factor + (BigInt(fraction || '0') * factor) / 10n ** BigInt(fraction.length)
  )
}
