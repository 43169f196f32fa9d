/** How many bytes of each file are allocated, for st_blocks: counted when somebody asks. */
import { isExpected } from '../errors.js'
import type { LayerSpec } from '../formats/format.js'
import { allocatedNow, filesOf } from '../image/layer.js'
import type { View } from '../formats/driver.js'
import { countAllocated } from '../image/holes.js'
import type { ImageSet } from '../image/image-set.js'
import type { WritableDisk } from '../formats/writable.js'
import type { ImageNode } from './tree.js'

/** A count may take this long for the first files, less for each later one. */
const COUNTING_MS = 40
/** A disk that is written is counted again when this many times as long as counting took has passed. */
const REST = 50

export class AllocatedBytes {
  private files = 0
  /** Of the disk that is written: what was counted last, and from when on it may be counted again. */
  private countedModified = 0
  private countedAt = 0
  private againAt = 0

  /** @param counts by place in the catalog, -1 where nobody counted yet; shared by the workers */
  constructor(
    private readonly images: ImageSet,
    private readonly layers: readonly LayerSpec[],
    private readonly counts: Float64Array,
    private readonly viewOf: (node: ImageNode) => View,
  ) {}

  isKnown(node: ImageNode): boolean {
    return (this.counts[node.place] as number) >= 0
  }

  of(node: ImageNode): number {
    const known = this.counts[node.place] as number
    const disk = writtenDisk(this.images, node)
    if (known >= 0 && (disk === undefined || !this.isDue(disk))) return known
    const startedAt = Date.now()
    const started = performance.now()
    const modified = disk?.modified ?? 0
    // A disk is one file, however often it is counted.
    const bytes = this.count(node, COUNTING_MS / (1 + (known >= 0 ? 0 : this.files++) / 8))
    if (disk) {
      this.countedModified = modified
      this.countedAt = startedAt
      const ended = performance.now()
      this.againAt = ended + REST * (ended - started)
    }
    this.counts[node.place] = bytes
    return bytes
  }

  /** Whether the disk has not been written since it was counted. */
  isCurrent(disk: WritableDisk): boolean {
    const { modified } = disk
    if (modified !== this.countedModified) return false
    // Writes of the millisecond in which it was counted may have come after that.
    return modified === 0 || modified < this.countedAt
  }

  /** What was given back counts at once, since st_blocks may err to the low side only. */
  lower(node: ImageNode, bytes: number): void {
    const known = this.counts[node.place] as number
    if (known >= 0) this.counts[node.place] = Math.max(0, known - bytes)
  }

  private isDue(disk: WritableDisk): boolean {
    return !this.isCurrent(disk) && performance.now() >= this.againAt
  }

  /** A file whose table is damaged, or whose storage is gone, has attributes all the same: reading it is what fails. */
  private count(node: ImageNode, milliseconds: number): number {
    const { disk } = this.images
    // Nobody overwrites tables in place, so no bytes of the disk are in the way of counting.
    disk?.beginRead(0, 0)
    try {
      return countAllocated(this.viewOf(node), this.fileBytes(node.entry.layer), milliseconds)
    } catch (error) {
      if (isExpected(error)) return 0
      throw error
    } finally {
      disk?.endRead()
    }
  }

  /** What the files from `layer` down take on their disks: no more of a view's data can be real. */
  private fileBytes(layer: number): number {
    let sum = 0
    for (let at: number | undefined = layer; at !== undefined; ) {
      const spec: LayerSpec | undefined = this.layers[at]
      if (!spec) break
      const isWritten = at === 0 && this.images.disk !== undefined
      for (const file of filesOf(spec)) sum += isWritten ? allocatedNow(file) : file.allocatedBytes
      at = spec.below
    }
    return sum
  }
}

/** The disk, if `node` is its file and it is mounted for writing. */
export const writtenDisk = (images: ImageSet, node: ImageNode): WritableDisk | undefined =>
  node.entry.kind === 'disk' ? images.disk : undefined
