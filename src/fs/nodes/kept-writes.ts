/** Notes which writes the kernel keeps of files that are written with -o writeback (writing/write-back.ts). Without it, nothing. */
import { constants } from 'node:os'
import type { DiskFile } from '../writing/disk-file.js'
import type { WriteBackMount } from '../writing/write-back.js'
import type { WrittenFiles } from '../writing/written-files.js'
import type { FileReader } from './file-reader.js'
import type { OpenCounts } from './open-counts.js'
import type { ImageNode, Node } from './tree.js'

const { ENOSPC } = constants.errno

export class KeptWrites {
  constructor(
    private readonly writeBack: WriteBackMount | undefined,
    private readonly opens: OpenCounts | undefined,
    private readonly files: WrittenFiles,
    private readonly reader: FileReader,
  ) {}

  /** Whether the kernel may have kept bytes of the file that are not here yet. */
  isAhead(node: Node): boolean {
    return this.writeBack !== undefined && this.opens?.hasWriterToCache(node.id) === true
  }

  /** Whether it must keep nothing now that programs write. */
  mustPassCache(node: Node): boolean {
    if (!this.writeBack) return false
    return this.files.find(node)?.truncations.isActive === true || !this.writeBack.areDropsDone
  }

  /** Returns the blocks to show: programs take a file without any for a hole as a whole. */
  blocks(node: Node, blocks: number): number {
    return this.writeBack && this.files.isWritable(node) ? Math.max(1, blocks) : blocks
  }

  /**
   * Answers a write from the page cache of which only `length` bytes fitted, or none with an errno. The kernel takes no notice of
   * a part that was not written, so this is an error, too.
   */
  overrun(length: number): number {
    if (this.opens && (length >= 0 || length === -ENOSPC)) this.opens.isOverrun = true
    return length < 0 ? length : -ENOSPC
  }

  /** Call this after a handle of file `id` was released. */
  onRelease(id: number): void {
    if (this.opens?.isOverrun && !this.opens.hasWriterToCache(id)) this.writeBack?.onOverrun()
  }

  onTruncated(): void {
    this.writeBack?.onTruncated()
  }

  /** Makes the kernel believe that the file has its whole size, if `handle` has truncated it. */
  showWhole(node: ImageNode, { truncations, disk }: DiskFile, handle: number): void {
    const { writeBack } = this
    if (!writeBack || truncations.markOf(handle) === undefined || disk.sizeBytes === 0) return
    const last = Buffer.alloc(1)
    this.reader.read(node, last, 1, disk.sizeBytes - 1)
    writeBack.showWhole(disk.sizeBytes, last[0] as number)
  }

  /** Forgets a handle that could not be opened after all. */
  abandon(node: Node, handle: number): void {
    this.files.find(node)?.truncations.release(handle)
  }
}
