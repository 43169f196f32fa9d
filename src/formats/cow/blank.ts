/** Makes empty images, for disks that are thrown away. */
import type { WritableStore } from '../../io/store.js'
import { type CowHeader, placesOf, SHAPES } from './header.js'
import { SECTOR_BYTES } from '../../sector.js'

/** The alignment of the data. */
const ALIGNMENT_BYTES = 4096

/** Makes the file an image of a disk of `diskBytes` bytes, a multiple of 512, in the layout of `like`. Throws SystemError. */
export function writeBlankCow(store: WritableStore, like: CowHeader, diskBytes: number): void {
  const { layout } = like
  const shape = SHAPES[layout]
  const { bitmapOffset, bitmapBytes } = placesOf(layout, diskBytes, ALIGNMENT_BYTES)
  const head = Buffer.alloc(shape.bytes)
  head.write('OOOM', 'latin1')
  head.writeUInt32BE(shape.version, 4)
  // An image of version 3 must have a backing file.
  if (shape.version === 3) head.write('-', shape.nameAt)
  head.writeBigUInt64BE(BigInt(diskBytes), shape.sizeAt)
  head.writeUInt32BE(SECTOR_BYTES, shape.sectorBytesAt)
  if (shape.alignment) head.writeUInt32BE(ALIGNMENT_BYTES, shape.alignment.at)
  store.write(head, 0, head.length, 0)
  store.truncate(bitmapOffset + bitmapBytes)
}
