/**
 * The files of a mount that programs can write. Each has a disk, which other files may show, too, and its own truncations, owner
 * and mode.
 */
import type { DiskFile } from './disk-file.js'
import type { Node } from '../nodes/tree.js'

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
