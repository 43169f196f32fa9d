/** The files that show the disk of an image that is written, and parts of it. */
import type { WritableDisk } from '../../formats/writable.js'
import type { ViewSet } from '../../image/reading/view-set.js'
import { lowerCount } from '../nodes/allocated-bytes.js'
import { DiskFile, type DiskFileOptions } from './disk-file.js'
import type { ImageNode, Node, Tree } from '../nodes/tree.js'
import type { FilePlace } from './truncations.js'
import type { WrittenFiles } from './written-files.js'

interface Parts {
  readonly tree: Tree
  readonly views: ViewSet
  /** Allocated bytes by place in the catalog. */
  readonly allocated: Float64Array
}

/** The files of a mount whose image is written: the disk's, and those of its partitions. Without a disk, there are none. */
export class DiskFiles implements WrittenFiles {
  private readonly files = new Map<number, DiskFile>()
  private readonly nodes: readonly ImageNode[]

  /** @param optionsOf returns what the file of a node needs, which lies at `place` */
  constructor(
    private readonly parts: Parts,
    optionsOf: (node: ImageNode, place: FilePlace) => Omit<DiskFileOptions, 'onZero'>,
  ) {
    const { tree, views } = parts
    this.nodes = tree.images().filter(({ entry }) => views.diskOf(entry))
    for (const node of this.nodes) {
      const place = placeOf(node, tree)
      const onZero = (offset: number, length: number) => this.lower(place.start + offset, length)
      const disk = views.diskOf(node.entry) as WritableDisk
      this.files.set(node.id, new DiskFile(disk, { ...optionsOf(node, place), onZero }))
    }
  }

  /** Lowers the counts of all files that show a range of the disk that was zeroed. */
  private lower(offset: number, length: number): void {
    for (const node of this.nodes) {
      const { start, end } = placeOf(node, this.parts.tree)
      const bytes = Math.min(offset + length, end) - Math.max(offset, start)
      if (bytes > 0) lowerCount(this.parts.allocated, node.place, bytes)
    }
  }

  get found(): Iterable<DiskFile> {
    return this.files.values()
  }

  isWritable(node: Node | undefined): boolean {
    return this.find(node) !== undefined
  }

  find(node: Node | undefined): DiskFile | undefined {
    return node && this.files.get(node.id)
  }

  open(node: Node | undefined): DiskFile | undefined {
    return this.find(node)
  }
}

/** Returns where the file of a node lies on its disk. Only a partition has a fixed end. */
export function placeOf(node: ImageNode, tree: Tree): FilePlace {
  const { kind, startOffset, sizeBytes } = node.entry
  const place = { file: node.id, disk: tree.wholeOf(node) }
  if (kind !== 'partition') return { ...place, start: 0, end: Number.POSITIVE_INFINITY }
  return { ...place, start: startOffset, end: startOffset + sizeBytes }
}
