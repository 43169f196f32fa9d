/**
 * Resizes vmdk images: the last extent grows or shrinks, and the descriptor follows. At every moment the extent holds at least
 * what its line says, so the disk has the old size or the new one.
 */
import { ImageError } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import { SECTOR_BYTES } from '../../sector.js'
import { MAX_GRAIN_DIRECTORY_BYTES } from '../limits.js'
import { fillZeros } from '../filling.js'
import type { FormatResizer, ResizedImage, ResizedLayer } from '../resizing.js'
import { NO_PARENT_CID } from './descriptor.js'
import { plannedChange } from './descriptor-replacement.js'
import type { VmdkExtent, VmdkSpec } from './open.js'
import { resizedText } from './resized-text.js'
import { growSparse, setCapacity } from './sparse-growth.js'
import { directoryEntries } from './sparse-header.js'

export const vmdkResizer: FormatResizer = {
  isPlain: false,
  preallocations: ['off'],
  check: (layer, sizeBytes) => void lastExtent(layer, sizeBytes),
  grow,
  shrink,
}

/** The most bytes of an extent of a split disk. */
const SPLIT_BYTES = 2 ** 31

interface Last {
  readonly extent: VmdkExtent & { readonly file: NonNullable<VmdkExtent['file']> }
  /** Its new size, in bytes. */
  readonly sizeBytes: number
}

/** Returns the extent whose size changes. Throws ImageError if the disk cannot have `sizeBytes` bytes. */
function lastExtent({ path, spec }: ResizedLayer, sizeBytes: number): Last {
  const { descriptor, extents, sizeBytes: before } = spec as VmdkSpec
  const refuse = (what: string, hint = 'convert it to a new image: vimgfs convert'): never => {
    throw new ImageError('UNSUPPORTED', what, { path, hint })
  }
  const extent = extents.at(-1)
  if (!descriptor || !extent) return refuse('it has no descriptor that says its size')
  const { parentCid, parentHint, createType } = descriptor
  if (parentCid !== NO_PARENT_CID || parentHint !== undefined) {
    refuse('a disk on a parent is as large as the parent')
  }
  const { file, layout } = extent
  const wanted = sizeBytes - (before - extent.sizeBytes)
  if (!file || (layout.kind !== 'flat' && layout.kind !== 'sparse')) {
    return refuse(`its last extent is ${layout.kind}, which has one size`)
  }
  if (extents.some(other => other !== extent && other.file?.fd === file.fd)) {
    refuse('its extents share a file')
  }
  if (wanted <= 0) refuse('it would lose an extent')
  if (/^(?:twoGb|2Gb)/i.test(createType) && wanted > SPLIT_BYTES) {
    refuse('its last extent would become larger than 2 GiB')
  }
  if (layout.kind === 'sparse') {
    const { isCompressed, isUnclean, lacksDirectory, readsRedundant } = layout.header
    const directoryBytes = 4 * directoryEntries({ ...layout.header, capacityBytes: wanted })
    if (directoryBytes > MAX_GRAIN_DIRECTORY_BYTES) refuse(`${wanted} bytes are too many for it`)
    if (isCompressed) refuse('a streamOptimized disk has one size')
    if (isUnclean || lacksDirectory || readsRedundant) {
      refuse('it was not closed cleanly, or is damaged', 'repair it: vimgfs check --repair all')
    }
  }
  return { extent: { ...extent, file }, sizeBytes: wanted }
}

function grow(image: ResizedImage, sizeBytes: number): void {
  const { extent, sizeBytes: wanted } = lastExtent(image.layer, sizeBytes)
  const changed = changedText(image, wanted, sizeBytes)
  const store = image.storeOf(extent.file)
  if (extent.layout.kind === 'flat') growFlat(store, extent.layout.startBytes, extent, wanted)
  else growSparse(store, wanted)
  changed()
}

function growFlat(store: WritableStore, start: number, extent: VmdkExtent, wanted: number): void {
  const end = start + extent.sizeBytes
  // Bytes past the extent do not belong to the disk.
  fillZeros(store, end, Math.max(0, Math.min(store.sizeBytes, start + wanted) - end))
  if (store.sizeBytes < start + wanted) store.truncate(start + wanted)
  store.sync()
}

function shrink(image: ResizedImage, sizeBytes: number): readonly string[] {
  const { extent, sizeBytes: wanted } = lastExtent(image.layer, sizeBytes)
  changedText(image, wanted, sizeBytes)()
  const store = image.storeOf(extent.file)
  if (extent.layout.kind === 'flat') store.truncate(extent.layout.startBytes + wanted)
  else setCapacity(store, wanted)
  store.sync()
  return []
}

/** Returns a function that writes the descriptor for the new size. Throws ImageError if there is no room for it. */
function changedText({ layer, store }: ResizedImage, extentBytes: number, sizeBytes: number) {
  const { descriptorPlace: place } = layer.spec as VmdkSpec
  const refuse = (what: string): never => {
    const hint = 'convert it to a new image: vimgfs convert'
    throw new ImageError('UNSUPPORTED', what, { path: layer.path, hint })
  }
  if (!place) return refuse('it has no descriptor that says its size')
  const old = Buffer.alloc(place.bytes)
  store.read(old, 0, old.length, place.offset)
  const sizes = { extent: extentBytes / SECTOR_BYTES, disk: sizeBytes / SECTOR_BYTES }
  const text = resizedText(old, sizes) ?? refuse('its descriptor has no line for its last extent')
  return plannedChange(store, place, old, text) ?? refuse('its descriptor has no room')
}
