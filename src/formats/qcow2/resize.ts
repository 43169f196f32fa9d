/**
 * Resizes qcow2 images as far as the writer does not: it makes them larger, but not smaller.
 *
 * An image that becomes smaller has its persistent bitmaps marked as in use before its header says the new size, as QEMU marks
 * them. So a power cut leaves each of them true for the size that the header says, or marked.
 */
import assert from 'node:assert'
import { ImageError } from '../../errors.js'
import type { WritableStore } from '../../io/store.js'
import type { FormatResizer, ResizedImage, ResizedLayer } from '../resizing.js'
import { loadBitmaps } from './bitmap-memory.js'
import { holdBitmaps, storeBitmaps } from './bitmap-store.js'
import { AUTOCLEAR, clusterBytes, type Qcow2Header, readHeader } from './header.js'
import { writeDiskSize, writeFeatures } from './header-update.js'
import { clearCount, readCount } from './refcount-bits.js'
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
  if (sizeBytes === 0 && header.bitmaps) {
    refuse('no bitmap is for a disk without bytes', 'remove them with qemu-img bitmap --remove')
  }
}

/**
 * Writes the size, and makes bitmaps smaller. Entries of the tables past it stay: they read as zeros if the disk grows again.
 * Returns warnings about bitmaps that were not kept.
 */
function shrink({ layer, store, storeOf }: ResizedImage, sizeBytes: number): readonly string[] {
  // The writer may have moved tables since the layer was opened.
  const header = readHeader(store)
  const isSole = (at: number) => readCount(store, header, at / clusterBytes(header)) === 1
  const memory = loadBitmaps(store, header, isSole)
  const { incompatible, compatible, autoclear } = header
  holdBitmaps(store, memory, 'resize', () =>
    writeFeatures(store, { incompatible, compatible, autoclear: autoclear & ~AUTOCLEAR.bitmaps }),
  )
  writeDiskSize(store, sizeBytes)
  store.sync()
  const dropped: number[] = []
  const warnings = storeBitmaps(store, memory, sizeBytes, {
    allocate: () => assert.fail('a smaller bitmap needs no new cluster'),
    free: (at, clusters) => {
      for (let i = 0; i < clusters; i++) dropped.push(at / clusterBytes(header) + i)
    },
  })
  giveBack(store, header, dropped)
  if (!layer.dataFile) return warnings
  const data = storeOf(layer.dataFile)
  data.truncate(sizeBytes)
  data.sync()
  return warnings
}

/** Frees clusters that had the count 1, and that nothing on the disk points at any more. A power cut leaves leaks at worst. */
function giveBack(store: WritableStore, header: Qcow2Header, clusters: readonly number[]): void {
  if (clusters.length === 0) return
  for (const cluster of clusters) clearCount(store, header, cluster)
  store.sync()
  for (const cluster of clusters) store.punch(cluster * clusterBytes(header), clusterBytes(header))
}
