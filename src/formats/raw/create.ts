/** Makes raw images: the file is the disk. */
import { UsageError } from '../../errors.js'
import {
  type FormatCreator,
  type ImageBuilder,
  type NewImage,
  NOCOW,
  type Place,
} from '../creating.js'
import { reserveSpace } from '../filling.js'

const PREALLOCATIONS = ['off', 'falloc', 'full'] as const

export const rawCreator: FormatCreator = {
  options: [
    NOCOW,
    {
      name: 'preallocation',
      type: PREALLOCATIONS,
      default: 'off',
      help: 'whether the file has all its space at once',
    },
  ],
  measure: ({ sizeBytes }) => ({ required: sizeBytes, fullyAllocated: sizeBytes }),
  begin: async image => {
    if (image.backing) throw new UsageError('a raw image cannot have a backing file')
    return new RawBuilder(image)
  },
}

class RawBuilder implements ImageBuilder {
  readonly unitBytes = 512
  readonly isFlat: boolean
  private readonly preallocation: (typeof PREALLOCATIONS)[number]
  private filled = 0

  constructor(private readonly image: NewImage) {
    const { preallocation = 'off' } = image.options
    this.preallocation = preallocation as typeof this.preallocation
    // Space that is filled with zeros is filled in order.
    this.isFlat = preallocation !== 'full'
    // At once, so that a lack of space shows before anything is copied.
    if (this.preallocation === 'falloc') {
      reserveSpace(image.files.main, 0, image.sizeBytes, 'falloc')
    }
  }

  place(offset: number, length: number): readonly Place[] {
    this.skip(offset)
    this.filled = offset + length
    return [{ store: this.image.files.main, at: offset, length }]
  }

  pack(): void {
    throw new TypeError('raw images have nothing compressed')
  }

  zero(offset: number, length: number): void {
    this.skip(offset + length)
  }

  skip(offset: number): void {
    if (this.preallocation === 'full') {
      reserveSpace(this.image.files.main, this.filled, offset - this.filled, 'full')
    }
    this.filled = offset
  }

  finish(): void {
    this.skip(this.image.sizeBytes)
    this.image.files.main.truncate(this.image.sizeBytes)
  }
}
