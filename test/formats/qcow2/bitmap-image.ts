/**
 * Images with bitmaps in memory, byte by byte from the specification (QEMU docs/interop/qcow2.rst,
 * "Bitmaps") and from nothing of src/, and a reader of what a file says of them.
 */
import { buildImage } from '../../fixtures/qcow2-builder.js'

export const IN_USE = 1
export const AUTO = 2
const BITMAPS_EXTENSION = 0x23852875
const HEADER_BYTES = 112
const EXTENSION_AT = HEADER_BYTES + 8
/** Bytes of a directory entry before its extra data and its name. */
const ENTRY_BYTES = 24

export interface BitmapSpec {
  readonly name: string
  readonly flags: number
  readonly granularityBits: number
  /** The bits that are set; `ones`: a chunk's bits are all set. */
  readonly bits?: Iterable<number>
  /** Chunks that have a cluster though their bits are all clear. */
  readonly allocated?: readonly number[]
  /** Chunks whose entry says that all bits are set. */
  readonly ones?: readonly number[]
  /** Bits beyond the disk are set, too, where their cluster has room: damage that readers bear. */
  readonly hasTail?: boolean
  readonly extra?: Buffer
}

export interface BitmapImageSpec {
  readonly clusterBits: number
  readonly sizeBytes: number
  /** The size that the L1 table is made for. */
  readonly maxSizeBytes?: number
  readonly bitmaps: readonly BitmapSpec[]
}

export interface BitmapImage {
  readonly bytes: Buffer
  readonly directoryAt: number
  /** Where each bitmap's entry is, and its table. */
  readonly entryAt: readonly number[]
  readonly tableAt: readonly number[]
}

export function buildBitmapImage(spec: BitmapImageSpec): BitmapImage {
  const cluster = 2 ** spec.clusterBits
  const directoryBytes = spec.bitmaps.reduce((sum, bitmap) => sum + entryBytes(bitmap), 0)
  const extension = Buffer.alloc(24)
  extension.writeUInt32BE(spec.bitmaps.length, 0)
  extension.writeBigUInt64BE(BigInt(directoryBytes), 8)
  const build = () =>
    buildImage({
      clusterBits: spec.clusterBits,
      sizeBytes: spec.sizeBytes,
      headerBytes: HEADER_BYTES,
      autoclear: 1n,
      extensions: [{ type: BITMAPS_EXTENSION, data: extension }],
      l1Entries: Math.ceil((spec.maxSizeBytes ?? spec.sizeBytes) / (cluster * (cluster / 8))),
    })
  const directoryAt = build().fileBytes
  extension.writeBigUInt64BE(BigInt(directoryAt), 16)

  const clusters = [build().bytes(), padded(Buffer.alloc(directoryBytes), cluster)]
  let end = clusters.reduce((sum, part) => sum + part.length, 0)
  const place = (bytes: Buffer) => {
    const part = padded(bytes, cluster)
    clusters.push(part)
    end += part.length
    return end - part.length
  }
  const directory = clusters[1]!
  const entryAt: number[] = []
  const tableAt: number[] = []
  let at = 0
  for (const bitmap of spec.bitmaps) {
    const entries = tableOf(bitmap, spec, cluster, place)
    const table = Buffer.alloc(entries.length * 8)
    for (const [i, entry] of entries.entries()) table.writeBigUInt64BE(BigInt(entry), i * 8)
    entryAt.push(directoryAt + at)
    tableAt.push(place(table))
    putEntry(directory.subarray(at), bitmap, tableAt.at(-1)!, entries.length)
    at += entryBytes(bitmap)
  }
  return { bytes: Buffer.concat(clusters), directoryAt, entryAt, tableAt }
}

const entryBytes = ({ name, extra }: BitmapSpec): number =>
  Math.ceil((ENTRY_BYTES + (extra?.length ?? 0) + Buffer.byteLength(name)) / 8) * 8

function putEntry(b: Buffer, bitmap: BitmapSpec, tableAt: number, tableEntries: number): void {
  const { name, flags, granularityBits, extra = Buffer.alloc(0) } = bitmap
  b.writeBigUInt64BE(BigInt(tableAt), 0)
  b.writeUInt32BE(tableEntries, 8)
  b.writeUInt32BE(flags, 12)
  b.writeUInt8(1, 16)
  b.writeUInt8(granularityBits, 17)
  b.writeUInt16BE(Buffer.byteLength(name), 18)
  b.writeUInt32BE(extra.length, 20)
  extra.copy(b, ENTRY_BYTES)
  b.write(name, ENTRY_BYTES + extra.length)
}

function tableOf(
  bitmap: BitmapSpec,
  { sizeBytes }: BitmapImageSpec,
  cluster: number,
  place: (bytes: Buffer) => number,
): number[] {
  const count = Math.ceil(sizeBytes / 2 ** bitmap.granularityBits)
  const bytes = padded(Buffer.alloc(Math.ceil(count / 8)), cluster)
  for (const bit of bitmap.bits ?? []) bytes[bit >> 3]! |= 1 << (bit & 7)
  if (bitmap.hasTail) for (let i = count; i < bytes.length * 8; i++) bytes[i >> 3]! |= 1 << (i & 7)
  return Array.from({ length: bytes.length / cluster }, (_, chunk) => {
    if (bitmap.ones?.includes(chunk)) return 1
    const part = bytes.subarray(chunk * cluster, (chunk + 1) * cluster)
    const isNeeded = part.some(byte => byte !== 0) || bitmap.allocated?.includes(chunk)
    return isNeeded ? place(part) : 0
  })
}

function padded(bytes: Buffer, cluster: number): Buffer {
  const whole = Buffer.alloc(Math.ceil(bytes.length / cluster) * cluster)
  bytes.copy(whole)
  return whole
}

export interface FoundBitmap {
  readonly name: string
  readonly isInUse: boolean
  readonly isAuto: boolean
  /** Those that are set; none are read of a bitmap in use. */
  readonly bits: readonly number[]
}

export interface Found {
  /** The clusters of the directory, the tables and the bits, by where they begin. */
  readonly clusters: readonly number[]
  readonly bitmaps: readonly FoundBitmap[]
}

/**
 * What a file says of its bitmaps; 'void' where they are given up. Throws where a check would find
 * corruption, and where a valid bitmap's table is not as long as the disk needs.
 */
export function findBitmaps(file: Buffer): Found | 'void' {
  if ((file.readBigUInt64BE(88) & 1n) === 0n) return 'void'
  const cluster = 2 ** file.readUInt32BE(20)
  const sizeBytes = u64(file, 24)
  if (file.readUInt32BE(HEADER_BYTES) !== BITMAPS_EXTENSION) throw new Error('no extension')
  const count = file.readUInt32BE(EXTENSION_AT)
  const directoryBytes = u64(file, EXTENSION_AT + 8)
  const directoryAt = u64(file, EXTENSION_AT + 16)
  const clusters = rangeOf(directoryAt, directoryBytes, cluster)
  const bitmaps: FoundBitmap[] = []
  let at = directoryAt
  for (let i = 0; i < count; i++) {
    const entry = file.subarray(at)
    const flags = entry.readUInt32BE(12)
    if (flags & ~7) throw new Error(`flags ${flags}`)
    const isInUse = (flags & IN_USE) !== 0
    const granularityBits = entry.readUInt8(17)
    const nameAt = ENTRY_BYTES + entry.readUInt32BE(20)
    const nameEnd = nameAt + entry.readUInt16BE(18)
    const tableAt = u64(entry, 0)
    const tableEntries = entry.readUInt32BE(8)
    clusters.push(...rangeOf(tableAt, tableEntries * 8, cluster))
    const table = Array.from({ length: tableEntries }, (_, j) => u64(file, tableAt + j * 8))
    for (const place of table) {
      if (place <= 1) continue
      if (place % cluster !== 0 || place + cluster > file.length) throw new Error(`at ${place}`)
      clusters.push(place)
    }
    const bits = isInUse ? [] : bitsOf(file, table, cluster, sizeBytes / 2 ** granularityBits)
    const name = entry.toString('utf8', nameAt, nameEnd)
    bitmaps.push({ name, isInUse, isAuto: (flags & AUTO) !== 0, bits })
    at += Math.ceil(nameEnd / 8) * 8
  }
  if (at !== directoryAt + directoryBytes) throw new Error('the directory has another size')
  if (new Set(clusters).size !== clusters.length) throw new Error('a cluster is used twice')
  return { clusters, bitmaps }
}

function bitsOf(file: Buffer, table: readonly number[], cluster: number, bits: number): number[] {
  const count = Math.ceil(bits)
  if (table.length !== Math.ceil(count / 8 / cluster)) throw new Error(`${table.length} entries`)
  const perChunk = cluster * 8
  return table.flatMap((place, chunk) => {
    if (place === 0) return []
    const inChunk = Array.from(
      { length: Math.min(perChunk, count - chunk * perChunk) },
      (_, i) => i,
    )
    const isSet = (i: number) => place === 1 || (file[place + (i >> 3)]! >> (i & 7)) & 1
    return inChunk.filter(isSet).map(i => chunk * perChunk + i)
  })
}

const rangeOf = (at: number, length: number, cluster: number): number[] =>
  Array.from({ length: Math.ceil(length / cluster) }, (_, i) => at + i * cluster)

const u64 = (b: Buffer, at: number): number => Number(b.readBigUInt64BE(at))
