/**
 * The changes of a file that shows a disk, or a part of one. It behaves as a block device: its size is fixed, and a write past its end gets ENOSPC. A
 * handle that truncates it gets an empty file, as far as that handle writes (truncations.ts). The methods return what those
 * of NodeOperations return.
 */
import { constants } from 'node:os'
import type { View } from '../../formats/driver.js'
import type { WritableDisk } from '../../formats/writable.js'
import { isOutOfSpace } from '../../image/writing/out-of-space.js'
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE } from '../../io/libc.js'
import type { GapActions } from './gap-actions.js'
import { mayChange, type Owner, type Ownership } from '../nodes/ownership.js'
import type { Truncations } from './truncations.js'
import { SECTOR_BYTES } from '../../sector.js'

const { EAGAIN, EFBIG, ENFILE, ENOSPC, EOPNOTSUPP, EPERM } = constants.errno

const PERMISSIONS = 0o777

export interface DiskFileOptions {
  /** The disk as it is read, if that is not the image's own. */
  readonly view?: View
  /** Whether writing past the end makes the disk larger. */
  readonly isGrowable: boolean
  /** Whether nothing that is written has to survive the mount. */
  readonly isThrownAway?: boolean
  /** Whether the kernel keeps what is written: then nobody knows by which handle it was written. */
  readonly writesBack?: boolean
  /**
   * Called after the disk found no room: makes room, if other disks have space that they have not given back yet. Returns whether
   * it has done so.
   */
  readonly makeRoom?: () => boolean
  /** Returns what a file that is not one of the image's takes for this disk alone, in bytes. */
  readonly ownBytes?: () => number
  readonly onFlush: () => void
  /** Called for each range that was zeroed, in bytes. */
  readonly onZero: (offset: number, length: number) => void
  readonly truncations: Truncations
  readonly ownership: Ownership
  /** Makes the kernel drop cached pages, see `GapActions`. */
  readonly dropPages: GapActions['dropPages']
}

/** The attributes to set; undefined ones stay. */
export interface AttributeChange {
  readonly mode?: number
  readonly uid?: number
  readonly gid?: number
  readonly sizeBytes?: number
  /** The handle that ftruncate(2) was called with; undefined for truncate(2). */
  readonly handle?: number | undefined
  /** The id of the user who asks. */
  readonly asker?: number
}

/** The handle that writes. */
export interface Writer {
  /** 0 if it is not known. */
  readonly handle: number
  /** Whether it was opened with O_APPEND. */
  readonly isAppending?: boolean
}

export class DiskFile {
  private readonly gapActions: GapActions

  constructor(
    readonly disk: WritableDisk,
    private readonly options: DiskFileOptions,
  ) {
    const { dropPages } = options
    this.gapActions = { zero: (offset, length) => this.zero(offset, length), dropPages }
  }

  get view(): View | undefined {
    return this.options.view
  }

  /** Whether nothing that is written has to survive the mount. */
  get isThrownAway(): boolean {
    return this.options.isThrownAway === true
  }

  /** The bytes that a file beside the image takes for this disk alone. */
  get ownBytes(): number {
    return this.options.ownBytes?.() ?? 0
  }

  get truncations(): Truncations {
    return this.options.truncations
  }

  get ownership(): Ownership {
    return this.options.ownership
  }

  /** @returns how many of the `size` bytes from `start` of `source` were written at `offset`: as many as there is room for */
  write(
    source: Buffer,
    start: number,
    size: number,
    offset: number,
    { handle, isAppending = false }: Writer,
  ): number {
    const { truncations } = this.options
    let length = 0
    let back = offset
    try {
      length = isAppending ? this.fittingAtEnd(offset, size, handle) : this.fitting(offset, size)
      if (length > 0) {
        back = truncations.beforeWrite(handle, offset, offset + length, this.gapActions)
        try {
          this.disk.write(source, start, length, offset)
        } catch (error) {
          this.requireRoom(error)
          this.disk.write(source, start, length, offset)
        }
      }
    } catch (error) {
      truncations.failed(handle, back, offset + length)
      throw error
    }
    if (length < 0) truncations.failed(handle, offset, offset)
    else truncations.succeeded(handle)
    return length
  }

  fallocate(mode: number, offset: number, length: number, handle = 0): number {
    const keepsSize = (mode & FALLOC_FL_KEEP_SIZE) !== 0
    const kind = mode & ~FALLOC_FL_KEEP_SIZE
    const isPunching = kind === FALLOC_FL_PUNCH_HOLE && keepsSize
    if (kind !== 0 && kind !== FALLOC_FL_ZERO_RANGE && !isPunching) return -EOPNOTSUPP
    const isZeroing = kind !== 0
    // Past the end there is nothing to zero.
    if (!isZeroing || !keepsSize) {
      const fit = keepsSize ? this.clip(offset, length) : this.fitting(offset, length)
      if (fit < 0) return fit
      if (fit < length) return -ENOSPC
    }
    const mark = keepsSize ? undefined : this.options.truncations.markOf(handle)
    if (mark !== undefined && mark < offset + length) this.extend(handle, offset + length)
    if (!isZeroing && length > 0) this.orWithRoom(() => this.disk.reserve(offset, length))
    const zeroed = isZeroing ? Math.max(0, this.clip(offset, length)) : 0
    if (zeroed > 0) this.zero(offset, zeroed)
    return 0
  }

  /** Sets attributes; `now` are the current ones. Returns 0 or an errno. */
  setattr(change: AttributeChange, now: Owner): number {
    const { mode = now.mode, uid = now.uid, gid = now.gid, sizeBytes, handle, asker = 0 } = change
    // The mount has no programs, so drop set-user-ID and sticky bits.
    const wanted = { mode: mode & PERMISSIONS, uid, gid }
    if (!mayChange(asker, now, wanted)) return -EPERM
    const error = sizeBytes === undefined ? 0 : this.resize(sizeBytes, handle)
    const isSame = wanted.mode === now.mode && uid === now.uid && gid === now.gid
    if (error !== 0 || isSame) return error
    return this.options.ownership.set(wanted) ? 0 : -ENFILE
  }

  flush(): number {
    if (this.isThrownAway) return 0
    this.options.onFlush()
    this.disk.flush()
    return 0
  }

  private resize(sizeBytes: number, handle: number | undefined): number {
    const { truncations, isGrowable } = this.options
    if (handle !== undefined) {
      const isTruncated = truncations.markOf(handle) !== undefined
      if (!isTruncated && sizeBytes === this.disk.sizeBytes) return 0
      if (truncations.hasFailed(handle)) return -EPERM
      // A handle that was opened with O_TRUNC writes past the page cache.
      if (sizeBytes === 0 && this.options.writesBack && !isTruncated) return -EPERM
      if (sizeBytes === 0) return truncations.truncate(handle, false) ? 0 : -ENFILE
      if (isTruncated && sizeBytes <= this.disk.sizeBytes) return this.extend(handle, sizeBytes)
    }
    if (sizeBytes === this.disk.sizeBytes) return 0
    // truncate(2) has no handle whose writes follow. It would promise an empty file, and nothing would empty it.
    if (sizeBytes < this.disk.sizeBytes || !isGrowable) return -EPERM
    const fit = Math.min(0, this.fitting(0, sizeBytes))
    return fit < 0 || handle === undefined ? fit : this.extend(handle, sizeBytes)
  }

  /** Sets the end of the file for a handle that truncated; does nothing for other handles. */
  private extend(handle: number, end: number): number {
    const { truncations } = this.options
    if (truncations.isActive) truncations.resize(handle, end, this.gapActions)
    return 0
  }

  private zero(offset: number, length: number): void {
    this.orWithRoom(() => this.disk.zero(offset, length))
    this.options.onZero(offset, length)
  }

  private orWithRoom(act: () => void): void {
    try {
      act()
    } catch (error) {
      this.requireRoom(error)
      act()
    }
  }

  /** Throws `error` again unless there was too little room, and there is more now. */
  private requireRoom(error: unknown): void {
    if (!isOutOfSpace(error) || !this.options.makeRoom?.()) throw error
  }

  /** Returns how many of `length` bytes at `offset` fit, after growing the disk if that is allowed. */
  private fitting(offset: number, length: number): number {
    const end = offset + length
    if (end <= this.disk.sizeBytes || !this.options.isGrowable) return this.clip(offset, length)
    if (!Number.isSafeInteger(end)) return -EFBIG
    // QEMU does not show a last sector that is not whole.
    this.disk.grow(Math.ceil(end / SECTOR_BYTES) * SECTOR_BYTES)
    return length
  }

  /**
   * Does the same for a write with O_APPEND. The kernel appends where it believes the end to be: after another handle has
   * truncated, that may be before the disk's end.
   */
  private fittingAtEnd(offset: number, length: number, handle: number): number {
    const { truncations, isGrowable } = this.options
    const isInside = offset <= this.disk.sizeBytes - (isGrowable ? SECTOR_BYTES : 1)
    if (!isInside || truncations.markOf(handle) !== undefined) return this.fitting(offset, length)
    return isGrowable ? -EAGAIN : -ENOSPC
  }

  private clip(offset: number, length: number): number {
    const { sizeBytes } = this.disk
    if (offset + length <= sizeBytes) return length
    return offset < sizeBytes ? sizeBytes - offset : -ENOSPC
  }
}
