/**
 * The files of a mount that programs can write. Each has a disk, which other files may show, too, and its own truncations, owner
 * and mode.
 */
import type { ViewSet } from '../image/view-set.js'
import { DiskFile, type DiskFileOptions } from './disk-file.js'
import type { Node } from './tree.js'

export interface WrittenFiles {
  /** Reports whether programs may write the file of `node`. */
  isWritable(node: Node | undefined): boolean
  /** Returns the file of `node` as it is written; undefined if it cannot be, or if no program has opened it for writing yet. */
  find(node: Node | undefined): DiskFile | undefined
  /** Does the same for a program that wants to write the file of `node`. Throws SystemError. */
  open(node: Node | undefined): DiskFile | undefined
  /** All files that `find` finds. */
  readonly found: Iterable<DiskFile>
}

/** The writable file of a mount whose image is written: the disk's. Without a disk, there is none. */
export class DiskFiles implements WrittenFiles {
  readonly found: readonly DiskFile[]
  private readonly file: DiskFile | undefined

  constructor({ disk }: Pick<ViewSet, 'disk'>, optionsOf: () => DiskFileOptions) {
    this.file = disk && new DiskFile(disk, optionsOf())
    this.found = this.file ? [this.file] : []
  }

  isWritable(node: Node | undefined): boolean {
    return this.find(node) !== undefined
  }

  find(node: Node | undefined): DiskFile | undefined {
    return node?.kind === 'image' && node.entry.kind === 'disk' ? this.file : undefined
  }

  open(node: Node | undefined): DiskFile | undefined {
    return this.find(node)
  }
}
