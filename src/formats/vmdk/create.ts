/** Makes vmdk images: a descriptor, and the extents that it lists. */
import path from 'node:path'
import { UsageError } from '../../errors.js'
import type { FormatCreator, ImageBuilder, NewImage, Packing, Place } from '../creating.js'
import { CowdExtent } from './create/cowd-extent.js'
import { descriptorText, newContentId, type NewExtentLine } from './create/descriptor-text.js'
import { FlatExtent, type NewExtent } from './create/extent.js'
import {
  isFlat,
  isSplit,
  shapeOf,
  SPLIT_BYTES,
  VMDK_OPTIONS,
  type VmdkShape,
} from './create/options.js'
import { DESCRIPTOR, SparseExtent } from './create/sparse-extent.js'
import { StreamExtent } from './create/stream-extent.js'
import { measureVmdk } from './measure.js'
import { MAX_EXTENT_LINES } from '../limits.js'
import { SECTOR_BYTES } from '../../sector.js'

export const vmdkCreator: FormatCreator = {
  options: VMDK_OPTIONS,
  packedOption: 'subformat=streamOptimized',
  measure: measureVmdk,
  begin: async image => {
    // Neither QEMU nor this program opens an image whose extents hold nothing.
    if (image.sizeBytes === 0) throw new UsageError('a vmdk disk has one sector at least')
    return new VmdkBuilder(image, shapeOf(image))
  },
}

interface Part {
  /** Where it begins on the disk. */
  readonly offset: number
  readonly sizeBytes: number
  readonly extent: NewExtent
  readonly line: NewExtentLine
}

class VmdkBuilder implements ImageBuilder {
  readonly unitBytes: number
  readonly packing: Packing | undefined
  readonly isPackedOnly: boolean
  private readonly parts: readonly Part[]
  private readonly contentId = newContentId()

  constructor(
    private readonly image: NewImage,
    private readonly shape: VmdkShape,
  ) {
    this.parts = partsOf(image, shape)
    const first = this.parts[0]?.extent
    this.unitBytes = first?.unitBytes ?? SECTOR_BYTES
    this.packing = first instanceof StreamExtent ? first.packing : undefined
    this.isPackedOnly = this.packing !== undefined
  }

  place(offset: number, length: number): readonly Place[] {
    const places: Place[] = []
    this.each(offset, length, (extent, at, bytes) => places.push(...extent.place(at, bytes)))
    return places
  }

  pack(offset: number, packed: Buffer): void {
    this.each(offset, 1, (extent, at) => extent.pack(at, packed))
  }

  zero(offset: number, length: number): void {
    this.each(offset, length, (extent, at, bytes) => extent.zero(at, bytes))
  }

  finish(): void {
    for (const { extent } of this.parts) extent.finish()
    const text = this.descriptor(name => name)
    const isEmbedded = hasOwnExtent(this.shape)
    if (isEmbedded && text.length > DESCRIPTOR.sectors * SECTOR_BYTES) {
      throw new UsageError("the parent's name is too long for the image")
    }
    const { main } = this.image.files
    main.write(text, 0, text.length, isEmbedded ? DESCRIPTOR.sector * SECTOR_BYTES : 0)
  }

  mainWith(nameOf: (name: string) => string): Buffer | undefined {
    return hasOwnExtent(this.shape) ? undefined : this.descriptor(nameOf)
  }

  private descriptor(nameOf: (name: string) => string): Buffer {
    const { sizeBytes, backing } = this.image
    const lines = this.parts.map(({ line }) => ({ ...line, fileName: nameOf(line.fileName) }))
    return Buffer.from(descriptorText(this.shape, sizeBytes, backing, lines, this.contentId))
  }

  /** Calls `act` for each extent that a range lies in, with the place and the length within it. */
  private each(
    offset: number,
    length: number,
    act: (extent: NewExtent, at: number, bytes: number) => void,
  ): void {
    const end = offset + length
    for (let i = isSplit(this.shape) ? Math.floor(offset / SPLIT_BYTES) : 0; ; i++) {
      const part = this.parts[i]
      if (!part || part.offset >= end) return
      const from = Math.max(offset, part.offset)
      const to = Math.min(end, part.offset + part.sizeBytes)
      if (to > from) act(part.extent, from - part.offset, to - from)
    }
  }
}

/** Whether the only extent is in the descriptor's file. */
const hasOwnExtent = ({ subformat }: VmdkShape): boolean =>
  subformat === 'monolithicSparse' || subformat === 'streamOptimized'

function partsOf(image: NewImage, shape: VmdkShape): Part[] {
  const { files, sizeBytes } = image
  const { name, ext } = path.parse(files.path)
  const own = path.basename(files.path)
  if (hasOwnExtent(shape)) {
    const extent = extentOf(image, shape, files.main, sizeBytes)
    return [{ offset: 0, sizeBytes, extent, line: line(sizeBytes, 'SPARSE', own) }]
  }
  const type = isFlat(shape) ? 'FLAT' : shape.subformat === 'vmfsSparse' ? 'VMFSSPARSE' : 'SPARSE'
  const step = isSplit(shape) ? SPLIT_BYTES : sizeBytes
  const count = Math.ceil(sizeBytes / step)
  if (count > MAX_EXTENT_LINES) {
    throw new UsageError(`it would have ${count} extents; ${MAX_EXTENT_LINES} are the most`)
  }
  return Array.from({ length: count }, (_, i) => {
    const bytes = Math.min(step, sizeBytes - i * step)
    const fileName = `${name}-${suffixOf(shape, i)}${ext}`
    const extent = extentOf(image, shape, files.beside(fileName), bytes)
    return { offset: i * step, sizeBytes: bytes, extent, line: line(bytes, type, fileName) }
  })
}

const line = (bytes: number, type: NewExtentLine['type'], fileName: string): NewExtentLine => ({
  sectors: bytes / SECTOR_BYTES,
  type,
  fileName,
})

/** Returns the end of an extent's name, as VMware and QEMU have it. */
function suffixOf(shape: VmdkShape, index: number): string {
  if (shape.subformat === 'vmfsSparse') return 'delta'
  if (!isSplit(shape)) return 'flat'
  return `${isFlat(shape) ? 'f' : 's'}${String(index + 1).padStart(3, '0')}`
}

function extentOf(
  { backing }: NewImage,
  shape: VmdkShape,
  store: NewImage['files']['main'],
  bytes: number,
): NewExtent {
  const hasParent = backing !== undefined
  if (isFlat(shape)) return new FlatExtent(store, bytes)
  if (shape.subformat === 'streamOptimized') return new StreamExtent(store, bytes, hasParent)
  if (shape.subformat === 'vmfsSparse') return new CowdExtent(store, bytes)
  return new SparseExtent(store, bytes, shape.hasZeroGrains, hasParent)
}
