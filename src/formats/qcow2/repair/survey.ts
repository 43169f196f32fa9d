/** Finds the parts of an image's refcount structure that a repair can keep. */
import { ImageError } from '../../../errors.js'
import { MAX_REFCOUNT_TABLE_BYTES } from '../../limits.js'
import type { Census } from '../check/census.js'
import type { Qcow2Structure } from '../check/structure.js'
import { REFERENCES } from '../check/window.js'

export const MAX_BLOCKS = MAX_REFCOUNT_TABLE_BYTES / 8

/** Which parts of the refcount structure are sound, and which are needed. */
export class Survey {
  /** By block: whether a cluster that it counts is in use. */
  readonly isNeeded: Uint8Array
  /** By block: whether it can be written where it is. */
  readonly isSound: Uint8Array
  isTableSound = true
  /** The first cluster after all that are in use. */
  readonly end: number

  constructor(readonly census: Census) {
    const { blocks, image, window } = census
    const total = Math.ceil((image.clusters + 1) / blocks.perBlock)
    this.isNeeded = new Uint8Array(Math.max(blocks.entries, Math.min(total, MAX_BLOCKS + 1)))
    this.isSound = new Uint8Array(this.isNeeded.length)
    const { refcountTableOffset, refcountTableClusters } = image.header
    const table = refcountTableOffset / image.clusterBytes
    if (refcountTableClusters === 0) this.isTableSound = false
    census.run(undefined, () => {
      this.visitNeeded()
      for (let block = blocks.next(0); block < blocks.entries; block = blocks.next(block + 1)) {
        const cluster = blocks.offsetOf(block) / image.clusterBytes
        if (cluster < window.first || cluster >= window.end) continue
        const isAlone = window.referencesTo(cluster) === 1
        if (isAlone && census.problemOf(block) === undefined) this.isSound[block] = 1
      }
      for (let i = table; i < table + refcountTableClusters; i++) {
        if (i < window.first || i >= window.end) continue
        if (window.referencesTo(i) !== 1) this.isTableSound = false
      }
    })
    this.end = image.clusters + (census.reachesBeyond ? 1 : 0)
    if (table + refcountTableClusters > image.clusters) this.isTableSound = false
  }

  /** Whether a block is missing, or the table names an impossible one. */
  get isIncomplete(): boolean {
    const { blocks } = this.census
    if (!this.isTableSound) return true
    for (let block = 0; block < this.isNeeded.length; block++) {
      if (this.isNeeded[block] && !this.isSound[block]) return true
    }
    for (let block = blocks.next(0); block < blocks.entries; block = blocks.next(block + 1)) {
      if (!this.isSound[block]) return true
    }
    return false
  }

  private visitNeeded(): void {
    const { window, blocks } = this.census
    const { cells, first, end } = window
    for (let cluster = first; cluster < end; ) {
      const block = Math.floor(cluster / blocks.perBlock)
      const stop = Math.min(end, (block + 1) * blocks.perBlock)
      for (; cluster < stop && !this.isNeeded[block]; cluster++) {
        if (((cells[cluster - first] as number) & REFERENCES) === 0) continue
        if (block >= MAX_BLOCKS) throw tooLarge(this.census.image)
        this.isNeeded[block] = 1
      }
      cluster = stop
    }
  }
}

export function tooLarge(image: Qcow2Structure): ImageError {
  return new ImageError('UNSUPPORTED', 'its reference counts do not fit in a refcount table', {
    path: image.store.path,
    hint: 'convert it to larger clusters with qemu-img convert',
  })
}
