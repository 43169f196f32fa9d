/** Makes cow images in the layout of QEMU for x86-64: every sector has its place, and a bit says whether it is there. */
import { UsageError } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import type {
  FormatCreator,
  ImageBuilder,
  MeasuredImage,
  Measurement,
  NewImage,
  Place,
} from '../creating.js'
import { placesOf, SHAPES } from './header.js'
import { SECTOR_BYTES } from '../../sector.js'

export const cowCreator: FormatCreator = {
  options: [],
  measure: measureCow,
  begin: async image => new CowBuilder(image),
}

const LAYOUT = 'qemu-x86-64'

/** Each sector has its place, so the file ends with the last data. */
function measureCow({ sizeBytes, data }: MeasuredImage): Measurement {
  const { bitmapOffset, bitmapBytes, dataOffset } = placesOf(LAYOUT, sizeBytes, SECTOR_BYTES)
  let required = bitmapOffset + bitmapBytes
  for (const { offset, length } of data) {
    required = dataOffset + Math.ceil((offset + length) / SECTOR_BYTES) * SECTOR_BYTES
  }
  return { required, fullyAllocated: Math.max(required, dataOffset + sizeBytes) }
}
/** How much of the bitmap is in memory. */
const WINDOW_BYTES = 64 * 1024

class CowBuilder implements ImageBuilder {
  readonly unitBytes = SECTOR_BYTES
  private readonly store: WritableStore
  private readonly places: ReturnType<typeof placesOf>
  private readonly window = Buffer.alloc(WINDOW_BYTES)
  /** Where the window begins in the bitmap. */
  private windowAt = 0
  private endAt: number

  constructor(private readonly image: NewImage) {
    this.store = image.files.main
    this.places = placesOf(LAYOUT, image.sizeBytes, SECTOR_BYTES)
    this.endAt = this.places.bitmapOffset + this.places.bitmapBytes
    // The name ends with a NUL.
    if (Buffer.byteLength(image.backing?.name ?? '') >= SHAPES[LAYOUT].nameBytes) {
      throw new UsageError(`the backing file's name has ${SHAPES[LAYOUT].nameBytes} bytes or more`)
    }
  }

  place(offset: number, length: number): readonly Place[] {
    this.mark(offset / SECTOR_BYTES, (offset + length) / SECTOR_BYTES)
    const at = this.places.dataOffset + offset
    this.endAt = at + length
    return [{ store: this.store, at, length }]
  }

  pack(): void {
    throw new TypeError('cow images have nothing compressed')
  }

  /** No bit means zeros, so sectors are made over the backing file. What is never written there reads as zeros. */
  zero(offset: number, length: number): void {
    const end = Math.min(offset + length, this.image.backing?.sizeBytes ?? 0)
    if (end > offset) this.place(offset, Math.ceil((end - offset) / SECTOR_BYTES) * SECTOR_BYTES)
  }

  finish(): void {
    this.writeWindow()
    if (this.store.sizeBytes < this.endAt) this.store.truncate(this.endAt)
    const { sizeBytes, backing } = this.image
    const shape = SHAPES[LAYOUT]
    const head = Buffer.alloc(shape.bytes)
    head.write('OOOM', 'latin1')
    head.writeUInt32BE(shape.version, 4)
    head.write(backing?.name ?? '', shape.nameAt)
    head.writeBigUInt64BE(BigInt(sizeBytes), shape.sizeAt)
    head.writeUInt32BE(SECTOR_BYTES, shape.sectorBytesAt)
    this.store.write(head, 0, head.length, 0)
  }

  /** Sets the bits of the sectors from `first` to before `end`. The lowest bit of a byte comes first. */
  private mark(first: number, end: number): void {
    for (let sector = first; sector < end; ) {
      const byte = Math.floor(sector / 8)
      if (byte >= this.windowAt + WINDOW_BYTES) {
        this.writeWindow()
        this.windowAt = byte - (byte % WINDOW_BYTES)
      }
      const windowEnd = (this.windowAt + WINDOW_BYTES) * 8
      const wholeBytes = Math.floor((Math.min(end, windowEnd) - sector) / 8)
      if (sector % 8 === 0 && wholeBytes > 0) {
        const at = byte - this.windowAt
        this.window.fill(0xff, at, at + wholeBytes)
        sector += wholeBytes * 8
      } else {
        this.window[byte - this.windowAt]! |= 1 << (sector % 8)
        sector++
      }
    }
  }

  /** Writes the part of the bitmap that is in memory. */
  private writeWindow(): void {
    const { bitmapOffset, bitmapBytes } = this.places
    const bytes = Math.min(WINDOW_BYTES, bitmapBytes - this.windowAt)
    if (bytes > 0) this.store.write(this.window, 0, bytes, bitmapOffset + this.windowAt)
    this.window.fill(0)
  }
}
