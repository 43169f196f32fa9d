/**
 * What changes the disk's file. It is what a block device is: its size stays, and what is written past its
 * end finds no space. A handle that truncates it gets a file that begins empty, as far as the handle writes
 * (truncations.ts). The methods return what those of NodeOperations do.
 */
import { constants } from 'node:os'
import type { WritableDisk } from '../formats/writable.js'
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE } from '../io/libc.js'
import { mayChange, type Owner, type Ownership } from './ownership.js'
import type { GapActions, Truncations } from './truncations.js'

const { EAGAIN, EFBIG, ENFILE, ENOSPC, EOPNOTSUPP, EPERM } = constants.errno

const PERMISSIONS = 0o777
/** Disks grow by whole sectors: QEMU shows nothing of one that a disk ends within. */
const SECTOR_BYTES = 512

export interface DiskFileOptions {
  /** Whether what is written behind the end makes the disk larger. */
  readonly isGrowable: boolean
  readonly onFlush: () => void
  /** Told of each range that was made zeros, in bytes. */
  readonly onZero: (length: number) => void
  readonly truncations: Truncations
  readonly ownership: Ownership
  /** Has the kernel drop cached pages, as `GapActions` does. */
  readonly dropPages: GapActions['dropPages']
}

/** The attributes to set; those that are undefined stay. */
export interface AttributeChange {
  readonly mode?: number
  readonly uid?: number
  readonly gid?: number
  readonly sizeBytes?: number
  /** The handle that ftruncate(2) was called with; undefined for truncate(2). */
  readonly handle?: number | undefined
  /** The user who asks. */
  readonly asker?: number
}

/** Who writes. */
export interface Writer {
  /** 0 where nobody knows. */
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

  /** @returns how many of the `size` bytes from `start` of `source` there was room for at `offset` */
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
      length = isAppending ? this.roomAtEnd(offset, size, handle) : this.room(offset, size)
      if (length > 0) {
        back = truncations.beforeWrite(handle, offset, offset + length, this.gapActions)
        this.disk.write(source, start, length, offset)
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
    // Zeros behind the end are there already.
    if (!isZeroing || !keepsSize) {
      const room = keepsSize ? this.clip(offset, length) : this.room(offset, length)
      if (room < 0) return room
      if (room < length) return -ENOSPC
    }
    const mark = keepsSize ? undefined : this.options.truncations.markOf(handle)
    if (mark !== undefined && mark < offset + length) this.extend(handle, offset + length)
    if (!isZeroing && length > 0) this.disk.reserve(offset, length)
    const zeroed = isZeroing ? Math.max(0, this.clip(offset, length)) : 0
    if (zeroed > 0) this.zero(offset, zeroed)
    return 0
  }

  /** Sets the attributes, which are `now` now: 0 or an errno. */
  setattr(change: AttributeChange, now: Owner): number {
    const { mode = now.mode, uid = now.uid, gid = now.gid, sizeBytes, handle, asker = 0 } = change
    // No program lies in the mount, so nothing is set-user-ID or sticky.
    const wanted = { mode: mode & PERMISSIONS, uid, gid }
    if (!mayChange(asker, now, wanted)) return -EPERM
    const error = sizeBytes === undefined ? 0 : this.resize(sizeBytes, handle)
    const isSame = wanted.mode === now.mode && uid === now.uid && gid === now.gid
    if (error === 0 && !isSame) this.options.ownership.set(wanted)
    return error
  }

  flush(): number {
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
      if (sizeBytes === 0) return truncations.truncate(handle, false) ? 0 : -ENFILE
      if (isTruncated && sizeBytes <= this.disk.sizeBytes) return this.extend(handle, sizeBytes)
    }
    if (sizeBytes === this.disk.sizeBytes) return 0
    // truncate(2) has no handle whose writes would follow: it would promise an empty file, and nobody
    // would make it one.
    if (sizeBytes < this.disk.sizeBytes || !isGrowable) return -EPERM
    const room = Math.min(0, this.room(0, sizeBytes))
    return room < 0 || handle === undefined ? room : this.extend(handle, sizeBytes)
  }

  /** The file of a handle that truncated ends at `end` now; for others nothing changes. */
  private extend(handle: number, end: number): number {
    const { truncations } = this.options
    if (truncations.isActive) truncations.resize(handle, end, this.gapActions)
    return 0
  }

  private zero(offset: number, length: number): void {
    this.disk.zero(offset, length)
    this.options.onZero(length)
  }

  /** How many of `length` bytes at `offset` there is room for, once it has grown if it may. */
  private room(offset: number, length: number): number {
    const end = offset + length
    if (end <= this.disk.sizeBytes || !this.options.isGrowable) return this.clip(offset, length)
    if (!Number.isSafeInteger(end)) return -EFBIG
    this.disk.grow(Math.ceil(end / SECTOR_BYTES) * SECTOR_BYTES)
    return length
  }

  /**
   * The same for a write with O_APPEND. The kernel adds it where it believes the end to be: after another
   * handle has truncated, that may be short of the disk's end.
   */
  private roomAtEnd(offset: number, length: number, handle: number): number {
    const { truncations, isGrowable } = this.options
    const isInside = offset <= this.disk.sizeBytes - (isGrowable ? SECTOR_BYTES : 1)
    if (!isInside || truncations.markOf(handle) !== undefined) return this.room(offset, length)
    return isGrowable ? -EAGAIN : -ENOSPC
  }

  private clip(offset: number, length: number): number {
    const { sizeBytes } = this.disk
    if (offset + length <= sizeBytes) return length
    return offset < sizeBytes ? sizeBytes - offset : -ENOSPC
  }
}
