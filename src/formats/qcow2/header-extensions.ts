/** The extensions of the qcow2 header (QEMU docs/interop/qcow2.rst, "Header extensions"). */
import { layout, u8, u32be, u64be } from '../../binary.js'
import { printable } from '../../errors.js'
import type { Defect } from './table-places.js'

export const EXTENSION = {
  end: 0,
  backingFormat: 0xe2792aca,
  featureNames: 0x6803f857,
  bitmaps: 0x23852875,
  encryption: 0x0537be77,
  dataFile: 0x44415441,
  /** Ours: no data, but old extensions to be skipped while the header changes (header-replacement.ts). */
  gap: 0x76676170,
  /** Ours: in what state the disk was that an overlay stands on (base-note.ts). */
  baseNote: 0x7667626e,
}
/** The types of the extensions that reading the disk needs. */
export const READ_THROUGH = new Set([
  EXTENSION.backingFormat,
  EXTENSION.dataFile,
  EXTENSION.encryption,
])
export const EXTENSION_HEADER = layout({ type: u32be, length: u32be })
export const BITMAPS_EXTENSION = layout({
  count: u32be,
  reserved: u32be,
  directoryBytes: u64be,
  directoryOffset: u64be,
})
export const ENCRYPTION_EXTENSION = layout({ offset: u64be, length: u64be })
export const FEATURE_NAME = layout({ type: u8, bit: u8 })
export const FEATURE_NAME_BYTES = 48

export interface BitmapsExtension {
  readonly count: number
  readonly directoryBytes: number
  readonly directoryOffset: number
}

/** The place and length of the LUKS header in the file, in bytes. */
export interface EncryptionExtension {
  readonly offset: number
  readonly length: number
}

export interface Extensions {
  backingFormat: string | undefined
  dataFileName: string | undefined
  bitmaps: BitmapsExtension | undefined
  encryption: EncryptionExtension | undefined
  /** The names of incompatible features, by bit. */
  featureNames: Map<number, string>
  defects: Defect[]
  /** The extension that is longer than the header cluster. None can be found after it. */
  broken: { readonly type: number; readonly at: number } | undefined
}

/**
 * Reads the extensions between the header and the end of `area`. A file with unknown features (`unknownBits`) is refused by
 * the names of these features. So reading must not fail first on something that these features have changed.
 */
export function readExtensions(area: Buffer, from: number, unknownBits: bigint): Extensions {
  const found: Extensions = {
    backingFormat: undefined,
    dataFileName: undefined,
    bitmaps: undefined,
    encryption: undefined,
    featureNames: new Map(),
    defects: [],
    broken: undefined,
  }
  for (let at = from; at + EXTENSION_HEADER.size <= area.length; ) {
    const { type, length } = EXTENSION_HEADER.decode(area, at)
    if (type === EXTENSION.end) break
    const start = at + EXTENSION_HEADER.size
    if (start + length > area.length) {
      if (unknownBits === 0n) found.broken = { type, at }
      break
    }
    const data = area.subarray(start, start + length)
    if (type === EXTENSION.backingFormat) found.backingFormat = text(data)
    else if (type === EXTENSION.dataFile) found.dataFileName = text(data)
    else if (type === EXTENSION.featureNames) found.featureNames = featureNames(data)
    else if (type === EXTENSION.bitmaps) {
      found.bitmaps = lenient(BITMAPS_EXTENSION, data)
      if (!found.bitmaps) found.defects.push(brokenBitmaps(at))
    } else if (type === EXTENSION.encryption) found.encryption = lenient(ENCRYPTION_EXTENSION, data)
    at = start + Math.ceil(length / 8) * 8
  }
  return found
}

/** An extension as it is in the file: its own header, its data and the padding. */
export interface RawExtension {
  readonly type: number
  readonly bytes: Buffer
}

/**
 * Returns all extensions between `from` and the end of `area`, also unknown ones, and where they end in bytes of the file, with
 * the marker that ends them.
 */
export function rawExtensions(
  area: Buffer,
  from: number,
): { readonly all: readonly RawExtension[]; readonly end: number } {
  const all: RawExtension[] = []
  let at = from
  while (at + EXTENSION_HEADER.size <= area.length) {
    const { type, length } = EXTENSION_HEADER.decode(area, at)
    const end = at + EXTENSION_HEADER.size + Math.ceil(length / 8) * 8
    if (type === EXTENSION.end || end > area.length) break
    all.push({ type, bytes: area.subarray(at, end) })
    at = end
  }
  return { all, end: Math.min(area.length, at + EXTENSION_HEADER.size) }
}

/** Decodes an extension that only writers and `info` need. Returns undefined for damage: these report it. */
function lenient<T>(structure: Decoder<T>, data: Buffer): T | undefined {
  if (data.length !== structure.size) return undefined
  try {
    return structure.decode(data)
  } catch {
    return undefined
  }
}

const brokenBitmaps = (at: number): Defect => ({
  part: 'bitmaps',
  message: 'the header extension that says where the bitmaps are is damaged',
  at,
})

interface Decoder<T> {
  readonly size: number
  decode(b: Buffer): T
}

function featureNames(data: Buffer): Map<number, string> {
  const names = new Map<number, string>()
  for (let at = 0; at + FEATURE_NAME_BYTES <= data.length; at += FEATURE_NAME_BYTES) {
    const { type, bit } = FEATURE_NAME.decode(data, at)
    const name = text(data.subarray(at + FEATURE_NAME.size, at + FEATURE_NAME_BYTES))
    if (type === 0) names.set(bit, `${printable(name)} (bit ${bit})`)
  }
  return names
}

/** Returns the text up to the first NUL, or all of it. */
function text(data: Buffer): string {
  const nul = data.indexOf(0)
  return data.toString('utf8', 0, nul < 0 ? data.length : nul)
}
