/** Counts the allocated bytes of each file, for st_blocks, when a program asks. */
import { isExpected } from '../errors.js'
import type { LayerSpec } from '../formats/format.js'
import { allocatedNow, filesOf } from '../image/layer.js'
import type { View } from '../formats/driver.js'
import { countAllocated } from '../image/holes.js'
import type { ViewSet } from '../image/view-set.js'
import type { WritableDisk } from '../formats/writable.js'
import type { ImageNode } from './tree.js'

/** How long counting may take for the first files, in milliseconds; less for each later file. */
const COUNTING_MS = 40
/** A disk that is written is counted again after this many times as long as counting took. */
const REST = 50

export class AllocatedBytes {
  private files = 0
  /** For the disk that is written: its mtime at the last count, and when it may be counted again. */
  private countedModified = 0
  private countedAt = 0
  private againAt = 0

  /** @param counts by place in the catalog; -1 if not counted yet; shared by the workers */
  constructor(
    private readonly views: ViewSet,
    private readonly layers: readonly LayerSpec[],
    private readonly counts: Float64Array,
    private readonly viewOf: (node: ImageNode) => View,
  ) {}

  isKnown(node: ImageNode): boolean {
    return (this.counts[node.place] as number) >= 0
  }

  of(node: ImageNode): number {
    const known = this.counts[node.place] as number
    const disk = writtenDisk(this.views, node)
    if (known >= 0 && (disk === undefined || !this.isDue(disk))) return known
    const startedAt = Date.now()
    const started = performance.now()
    const modified = disk?.modified ?? 0
    // Counting the disk again does not count as another file.
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

  /** Reports whether the disk has not been written since it was counted. */
  isCurrent(disk: WritableDisk): boolean {
    const { modified } = disk
    if (modified !== this.countedModified) return false
    // A write in the same millisecond may have come after the count.
    return modified === 0 || modified < this.countedAt
  }

  /** Subtracts freed bytes at once, because st_blocks may err on the low side only. */
  lower(node: ImageNode, bytes: number): void {
    const known = this.counts[node.place] as number
    if (known >= 0) this.counts[node.place] = Math.max(0, known - bytes)
  }

  private isDue(disk: WritableDisk): boolean {
    return !this.isCurrent(disk) && performance.now() >= this.againAt
  }

  /** Counts. A file with a damaged table, or on lost storage, still has attributes: only reading it fails. */
  private count(node: ImageNode, milliseconds: number): number {
    const { disk } = this.views
    // Counting reads tables only, and these change only under the lock's exclusive side. So no bytes need a stripe.
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

  /** Returns what the files from `layer` down take on their disks: a view cannot have more data. */
  private fileBytes(layer: number): number {
    let sum = 0
    for (let at: number | undefined = layer; at !== undefined; ) {
      const spec: LayerSpec | undefined = this.layers[at]
      if (!spec) break
      const isWritten = at === 0 && this.views.disk !== undefined
      for (const file of filesOf(spec)) sum += isWritten ? allocatedNow(file) : file.allocatedBytes
      at = spec.below
    }
    return sum
  }
}

/** Returns the disk if `node` is its file and it is mounted for writing. */
export const writtenDisk = (views: ViewSet, node: ImageNode): WritableDisk | undefined =>
  node.entry.kind === 'disk' ? views.disk : undefined
