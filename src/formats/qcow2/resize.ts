/** Resizes qcow2 images as far as the writer does not: it makes them larger, but not smaller. */
import { ImageError } from '../../errors.js'
import type { FormatResizer, ResizedImage, ResizedLayer } from '../resizing.js'
import { AUTOCLEAR, type Qcow2Header } from './header.js'
import { writeDiskSize } from './header-update.js'
import { upgrade } from './upgrade.js'

export const qcow2Resizer: FormatResizer = {
  isPlain: false,
  preallocations: ['off', 'metadata', 'falloc', 'full'],
  // As QEMU does it: the tables map all of a raw data file, so that a program may also write the file directly.
  leastPreallocation: ({ spec }) =>
    ((spec as Qcow2Header).autoclear & AUTOCLEAR.rawExternalData) !== 0n ? 'metadata' : 'off',
  check,
  shrink,
  upgrade: ({ layer, store }) => {
    const header = layer.spec as Qcow2Header
    if (header.version === 3 || header.snapshotCount === 0) return false
    upgrade(store)
    return true
  },
}

function check({ path, spec }: ResizedLayer, sizeBytes: number): void {
  const header = spec as Qcow2Header
  const refuse = (what: string, hint: string): never => {
    throw new ImageError('REFUSED', what, { path, hint })
  }
  if (header.version === 2 && header.snapshotCount > 0) {
    // Its snapshots need not say how large their disks are.
    refuse(
      'an image of version 2 with snapshots has one size',
      'raise its version with --upgrade; QEMU reads version 3 since 1.1',
    )
  }
  if (sizeBytes < header.sizeBytes && header.bitmaps) {
    refuse('its bitmaps are for its present size', 'remove them with qemu-img bitmap --remove')
  }
}

/** Writes the size. Entries of the tables past it stay: they read as zeros if the disk grows again. */
function shrink({ layer, store, storeOf }: ResizedImage, sizeBytes: number): void {
  writeDiskSize(store, sizeBytes)
  store.sync()
  if (!layer.dataFile) return
  const data = storeOf(layer.dataFile)
  data.truncate(sizeBytes)
  data.sync()
}
