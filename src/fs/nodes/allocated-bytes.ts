/** Counts the allocated bytes of each file, for st_blocks, when a program asks. */
import { isExpected } from '../../errors.js'
import type { LayerSpec } from '../../formats/format.js'
import { allocatedNow, filesOf } from '../../image/layer.js'
import type { View } from '../../formats/driver.js'
import { countAllocated } from '../../image/reading/holes.js'
import type { ViewSet } from '../../image/reading/view-set.js'
import type { WritableDisk } from '../../formats/writable.js'
import type { DiskFile } from '../writing/disk-file.js'
import type { ImageNode } from './tree.js'
import type { WrittenFiles } from '../writing/written-files.js'

/** How long counting may take for the first files, in milliseconds; less for each later file. */
const COUNTING_MS = 40
/** A disk that is written is counted again after this many times as long as counting took. */
const REST = 50

/** The last count of a file that is written. */
interface Count {
  /** The mtime of its disk then; 0 if it had not been written. */
  readonly modified: number
  readonly at: number
  /** When it may be counted again. */
  readonly againAt: number
}
const NO_COUNT: Count = { modified: 0, at: 0, againAt: 0 }

export class AllocatedBytes {
  private files = 0
  /** By place in the catalog. */
  private readonly last = new Map<number, Count>()

  /** @param counts by place in the catalog; -1 if not counted yet; shared by the workers */
  constructor(
    private readonly views: ViewSet,
    private readonly layers: readonly LayerSpec[],
    private readonly counts: Float64Array,
    private readonly written: WrittenFiles,
    private readonly viewOf: (node: ImageNode, file: DiskFile | undefined) => View,
  ) {}

  isKnown(node: ImageNode): boolean {
    return (this.counts[node.place] as number) >= 0
  }

  of(node: ImageNode): number {
    const known = this.counts[node.place] as number
    const disk = this.written.find(node)?.disk
    if (known >= 0 && (disk === undefined || !this.isDue(node, disk))) return known
    const at = Date.now()
    const started = performance.now()
    const modified = disk?.modified ?? 0
    // Counting the disk again does not count as another file.
    const bytes = this.count(node, COUNTING_MS / (1 + (known >= 0 ? 0 : this.files++) / 8))
    if (disk) {
      const ended = performance.now()
      this.last.set(node.place, { modified, at, againAt: ended + REST * (ended - started) })
    }
    this.counts[node.place] = bytes
    return bytes
  }

  /** Reports whether the disk has not been written since it was counted. */
  isCurrent(node: ImageNode, disk: WritableDisk): boolean {
    const { modified } = disk
    const last = this.lastOf(node)
    if (modified !== last.modified) return false
    // A write in the same millisecond may have come after the count.
    return modified === 0 || modified < last.at
  }

  private isDue(node: ImageNode, disk: WritableDisk): boolean {
    return !this.isCurrent(node, disk) && performance.now() >= this.lastOf(node).againAt
  }

  private lastOf(node: ImageNode): Count {
    return this.last.get(node.place) ?? NO_COUNT
  }

  /** Counts. A file with a damaged table, or on lost storage, still has attributes: only reading it fails. */
  private count(node: ImageNode, milliseconds: number): number {
    const file = this.written.find(node)
    const disk = file?.disk ?? this.views.disk
    // Counting reads tables only, and these change only under the lock's exclusive side. So no bytes need a stripe.
    disk?.beginRead(0, 0)
    try {
      const bytes = this.fileBytes(node.entry.layer) + (file?.ownBytes ?? 0)
      return countAllocated(this.viewOf(node, file), bytes, milliseconds)
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

/**
 * Subtracts freed bytes from the count of a file at once, because st_blocks may err on the low side only.
 * @param counts by place in the catalog
 */
export function lowerCount(counts: Float64Array, place: number, bytes: number): void {
  const known = counts[place] as number
  if (known >= 0) counts[place] = Math.max(0, known - bytes)
}
