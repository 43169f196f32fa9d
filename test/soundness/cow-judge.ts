/**
 * Judges whether a cow image is sound, by the descriptions of its layouts (QEMU up to 2.1, block/cow.c; Linux,
 * arch/um/drivers/cow_user.c) and without any code of src/: a sector whose bit is set is in the file, all
 * else is as it was.
 */
import type { Store } from '../../src/io/store.js'
import type { ImageVerdict } from './image-scenario.js'

const SECTOR = 512
const MAX_REPORTED = 20

export type Layout = 'QEMU, x86-64' | 'QEMU, i386' | 'UML 2' | 'UML 3' | 'UML 3, broken'

interface Fields {
  readonly version: number
  /** Of the disk, 64 bits. */
  readonly sizeAt: number
  readonly sectorSizeAt: number
  readonly nameAt: number
  readonly headerBytes: number
  /** Undefined: data begin at a sector, and the bitmap right after the header. */
  readonly alignmentAt?: number
}

/** In bytes. */
export const FIELDS: { readonly [L in Layout]: Fields } = {
  'QEMU, x86-64': { version: 2, nameAt: 8, sizeAt: 1040, sectorSizeAt: 1048, headerBytes: 1056 },
  'QEMU, i386': { version: 2, nameAt: 8, sizeAt: 1036, sectorSizeAt: 1044, headerBytes: 1048 },
  'UML 2': { version: 2, nameAt: 8, sizeAt: 4108, sectorSizeAt: 4116, headerBytes: 4120 },
  'UML 3': {
    ...{ version: 3, nameAt: 32, sizeAt: 12, sectorSizeAt: 20, headerBytes: 4128 },
    alignmentAt: 24,
  },
  'UML 3, broken': {
    ...{ version: 3, nameAt: 36, sizeAt: 16, sectorSizeAt: 24, headerBytes: 4136 },
    alignmentAt: 28,
  },
}

export interface CowPlaces {
  readonly sizeBytes: number
  readonly bitmapAt: number
  /** The bits of all sectors, in bytes. */
  readonly bitmapBytes: number
  readonly dataAt: number
}

/** Where all is in an image of a disk of `size` bytes by its header. */
export function cowPlaces(layout: Layout, size: number, alignment: number): CowPlaces {
  const { headerBytes, alignmentAt } = FIELDS[layout]
  const up = (bytes: number, unit: number) => Math.ceil(bytes / unit) * unit
  const sizeBytes = layout.startsWith('QEMU') ? size - (size % SECTOR) : size
  const sectors = Math.ceil(sizeBytes / SECTOR)
  const bitmapAt = alignmentAt === undefined ? headerBytes : up(headerBytes, alignment)
  const bitmapBytes = Math.ceil(sectors / 8)
  // UML 2 rounds down.
  const counted = layout === 'UML 2' ? Math.floor(sectors / 8) : bitmapBytes
  return { sizeBytes, bitmapAt, bitmapBytes, dataAt: up(bitmapAt + counted, alignment) }
}

export function judgeCow(store: Store, layout: Layout, parent: Buffer | undefined): ImageVerdict {
  const corruptions: string[] = []
  const { headerBytes, sizeAt, alignmentAt } = FIELDS[layout]
  const head = take(store, 0, headerBytes)
  const alignment = alignmentAt === undefined ? SECTOR : head.readUInt32BE(alignmentAt)
  const places = cowPlaces(layout, Number(head.readBigUInt64BE(sizeAt)), alignment)
  const { sizeBytes, bitmapAt, bitmapBytes, dataAt } = places
  const bitmap = take(store, bitmapAt, bitmapBytes)
  const disk = Buffer.alloc(sizeBytes)
  parent?.copy(disk, 0, 0, sizeBytes)
  const sectors = Math.ceil(sizeBytes / SECTOR)
  for (let sector = 0; sector < sectors; sector++) {
    if (((bitmap[sector >> 3] as number) & (1 << (sector & 7))) === 0) continue
    const at = sector * SECTOR
    const bytes = Math.min(SECTOR, sizeBytes - at)
    if (store.read(disk, at, bytes, dataAt + at) === bytes) continue
    if (corruptions.length < MAX_REPORTED) {
      corruptions.push(`sector ${sector} is marked, and lies beyond the end of the file`)
    }
  }
  // Bits past the end of the disk.
  const last = sectors % 8 === 0 ? 0 : (bitmap[bitmapBytes - 1] as number) >> (sectors % 8)
  const fixed = new Map([
    ['what stands in front of the bitmap', take(store, 0, bitmapAt)],
    ['the bits past the disk', Buffer.of(last)],
    [
      'the space after the bitmap',
      take(store, bitmapAt + bitmapBytes, dataAt - bitmapAt - bitmapBytes),
    ],
  ])
  return { corruptions, disk, fixed, uses: new Uint8Array(0) }
}

/** Reads bytes of a file; bytes past its end read as zeros. */
function take(store: Store, at: number, length: number): Buffer {
  const bytes = Buffer.alloc(length)
  store.read(bytes, 0, length, at)
  return bytes
}
