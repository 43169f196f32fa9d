/**
 * The changes that a mounted image allows. The main thread of its server makes them, one after the other, in the order in which
 * they were asked for. All methods throw ImageError or SystemError with a line for the user; then nothing has changed.
 */
import type { CheckResult } from '../../formats/check/report.js'
import type { InternalSnapshot } from '../../formats/format.js'
import type { ImageUsage } from '../../image/usage.js'
import type { UsageRequest } from '../../image/usage-run.js'
import type { SnapshotName } from '../../image/snapshots/snapshots.js'

export interface LiveDisk {
  /** The path of the image. */
  readonly path: string
  /** The name of its format. */
  readonly format: string
  /** Whether the disk is mounted for writing. All changes need that; listing and checking do not. */
  readonly isWritable: boolean
  /** Returns the snapshots within the image, in the order of its table. */
  snapshots(): readonly InternalSnapshot[]
  /** Takes a snapshot of all that has been written. Returns when its file can be opened. */
  createSnapshot(tag: string, options?: CreateOptions): Promise<void>
  /**
   * Deletes snapshots, all at once, and returns them. Refuses if somebody has one of their files open, and names who.
   * Returns when their files are gone.
   */
  deleteSnapshots(
    names: readonly SnapshotName[],
    options?: WaitOptions,
  ): Promise<readonly InternalSnapshot[]>
  /** Gives a snapshot another tag. Its file has the new name when this returns; who has it open keeps it. */
  renameSnapshot(name: SnapshotName, tag: string): Promise<void>
  /**
   * Makes the disk what a snapshot is. Unless `discard` is set, it takes a snapshot of the present state first, and returns its
   * tag; undefined if a snapshot shows the present state already. Refuses if somebody has the disk open, and names who.
   * Returns when no cache shows the old content.
   */
  revert(name: SnapshotName, discard: boolean, options?: WaitOptions): Promise<string | undefined>
  /** Makes the disk larger, and returns its size before and after, in bytes. Returns when its file has the new size. */
  resize(sizeBytes: number): Promise<{ readonly beforeBytes: number; readonly afterBytes: number }>
  /**
   * Checks the image while it is mounted; `progress` is told the part that is done, 0 to 1. Changes of the disk wait meanwhile, so
   * `cancel` ends it at once when nobody wants the result any more.
   */
  check(progress?: (part: number) => void, cancel?: AbortSignal): Promise<CheckResult>
  /** Tells where the space of the image went, with all that was written so far; `progress` and `cancel` as for a check. */
  usage(
    request: UsageRequest,
    progress: (part: number) => void,
    cancel?: AbortSignal,
  ): Promise<ImageUsage>
  /**
   * Follows the kernel, which lets programs write again, or no longer. In the second case it makes the image as it is after
   * unmounting, and refuses all changes from then on. Refuses to write an image that was opened for reading.
   */
  remount(isWritten: boolean): Promise<void>
}

export interface CreateOptions {
  /** Whether a snapshot of the same tag is deleted first, as savevm does. */
  readonly replace?: boolean
}

export interface WaitOptions {
  /** Present to wait until nobody has the file open, instead of refusing; aborting it ends the wait with ImageError. */
  readonly wait?: AbortSignal
}
