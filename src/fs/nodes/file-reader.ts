/** Reads the image files of a mount, and finds their holes. Each thread has its own reader. */
import { constants } from 'node:os'
import { ImageError } from '../../errors.js'
import type { View } from '../../formats/driver.js'
import type { SnapshotGuard } from '../../formats/format.js'
import type { WritableDisk } from '../../formats/writable.js'
import type { ChangeWatch } from '../../image/opening/change-watch.js'
import type { DecompressQueue } from '../../image/reading/decompress-queue.js'
import { readView } from '../../image/reading/engine.js'
import { nextData, nextHole } from '../../image/reading/holes.js'
import type { ViewSet } from '../../image/reading/view-set.js'
import { SEEK_DATA } from '../../io/libc.js'
import type { DiskFile } from '../writing/disk-file.js'
import type { ImageNode } from './tree.js'
import type { WrittenFiles } from '../writing/written-files.js'

const { EIO, ENXIO, ESTALE } = constants.errno
/** The handle of all programs that do not write the disk. A writer's handle is above 0. */
export const READING = 0

export interface ReaderParts {
  readonly views: ViewSet
  /** Decompresses on two processors. All reads go to its target. */
  readonly queue?: DecompressQueue
  /** Present if the image is only read, and nobody else is supposed to write it. */
  readonly watch?: ChangeWatch | undefined
  /** Present if others may write the image meanwhile; called when a snapshot turns out to have been deleted. */
  readonly onGone?: (() => void) | undefined
}

export class FileReader {
  private readonly views = new Map<number, View>()
  private readonly guards = new Map<number, SnapshotGuard | undefined>()

  constructor(
    private readonly parts: ReaderParts,
    private readonly files: WrittenFiles,
  ) {}

  /** @param file the file of `node` as it is written, if it is; found once, because another thread may make it meanwhile */
  view(node: ImageNode, file: DiskFile | undefined): View {
    if (file?.view) return file.view
    let view = this.views.get(node.id)
    if (view === undefined) {
      view = this.parts.views.viewOf(node.entry)
      this.views.set(node.id, view)
    }
    return view
  }

  /** Returns a handle for reading, or a negative errno. */
  open(node: ImageNode): number {
    // The bytes of a scratch copy itself can be read whatever happens to the image.
    const errno = this.files.find(node)?.view ? 0 : this.errnoAfter(node)
    return errno === 0 ? READING : -errno
  }

  /** Reads all of `length` bytes, at least one. Returns `length`, or a negative errno. Throws for damage. */
  read(node: ImageNode, target: Buffer, length: number, offset: number): number {
    let errno: number
    try {
      this.fill(node, target, length, offset)
      errno = this.errnoAfter(node)
    } catch (error) {
      errno = this.errnoInstead(node, error)
    }
    if (errno === 0 || (errno === EIO && this.fillOwn(node, target, length, offset))) return length
    return -errno
  }

  /** Returns where the next data, or the next hole, begin; or a negative errno. Throws for damage. */
  seek(node: ImageNode, offset: number, whence: number): number {
    const file = this.files.find(node)
    const disk = this.lockedDisk(file)
    let found: number
    disk?.beginRead(0, 0)
    try {
      const view = this.view(node, file)
      found = whence === SEEK_DATA ? nextData(view, offset) : nextHole(view, offset)
    } catch (error) {
      return -this.errnoInstead(node, error)
    } finally {
      disk?.endRead()
    }
    const errno = this.errnoAfter(node)
    if (errno !== 0) return -errno
    return found < 0 ? -ENXIO : found
  }

  private fill(node: ImageNode, target: Buffer, length: number, offset: number): void {
    const { queue } = this.parts
    const file = this.files.find(node)
    const disk = this.lockedDisk(file)
    // Data of snapshots and lower layers are never overwritten. The lock only keeps their place, so no stripe is needed.
    if (file) {
      file.truncations.noteRead()
      file.disk.beginRead(offset, length)
    } else disk?.beginRead(0, 0)
    try {
      readView(this.view(node, file), target, 0, length, offset, queue)
    } catch (error) {
      if (error instanceof ImageError) disk?.checkFiles()
      throw error
    } finally {
      // Also if the read failed: the helper must not write to the target any more.
      queue?.finish()
      disk?.endRead()
    }
  }

  /**
   * Reads bytes all of which have been written to the scratch copy of `node`. Returns false if it has none, or if some of them come
   * from the image below.
   */
  private fillOwn(node: ImageNode, target: Buffer, length: number, offset: number): boolean {
    const file = this.files.find(node)
    const view = file?.view
    if (!view) return false
    file.disk.beginRead(offset, length)
    try {
      for (let done = 0; done < length; ) {
        const extent = view.driver.lookup(offset + done, length - done)
        if (extent.kind === 'parent') return false
        done += extent.length
      }
      readView(view, target, 0, length, offset)
      return true
    } finally {
      file.disk.endRead()
    }
  }

  /** Returns the disk whose lock keeps the places of the bytes that are read, if any disk is written. */
  private lockedDisk(file: DiskFile | undefined): WritableDisk | undefined {
    return file?.disk ?? this.parts.views.disk
  }

  /**
   * Returns the errno if others have changed what `node` shows, so that anything may have been read; 0 otherwise. Asked after
   * reading: what counts is that the bytes were read in time.
   */
  private errnoAfter(node: ImageNode): number {
    const { watch, onGone } = this.parts
    if (watch?.hasChanged()) return EIO
    return onGone && !this.isThere(node, onGone) ? ESTALE : 0
  }

  /** Does the same for a read that has failed: the damage may lie in what the tables were before. Else throws `error`. */
  private errnoInstead(node: ImageNode, error: unknown): number {
    const { watch, onGone } = this.parts
    if (watch?.look()) return EIO
    if (onGone && !this.isThere(node, onGone)) return ESTALE
    throw error
  }

  private isThere(node: ImageNode, onGone: () => void): boolean {
    if (!this.guards.has(node.id)) this.guards.set(node.id, this.parts.views.guardOf(node.entry))
    const guard = this.guards.get(node.id)
    if (!guard || guard.isThere()) return true
    onGone()
    return false
  }
}
