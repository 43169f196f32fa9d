/**
 * What changes the disk's file. It is what a block device is: its size stays, opening it with O_TRUNC
 * changes nothing, and what is written behind its end finds no space. The methods return what those of
 * NodeOperations do.
 */
import { constants } from 'node:os'
import type { WritableDisk } from '../formats/writable.js'
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE } from '../io/libc.js'

const { EFBIG, ENOSPC, EOPNOTSUPP, EPERM } = constants.errno

const PERMISSIONS = 0o7777
/** Disks grow by whole sectors: QEMU shows nothing of one that a disk ends within. */
const SECTOR_BYTES = 512

export interface DiskFileOptions {
  /** Whether what is written behind the end makes the disk larger. */
  readonly isGrowable: boolean
  readonly onFlush: () => void
  /** Told of each range that was made zeros, in bytes. */
  readonly onZero: (length: number) => void
}

/** The attributes to set; those that are undefined stay. */
export interface AttributeChange {
  readonly mode?: number
  readonly uid?: number
  readonly gid?: number
  readonly sizeBytes?: number
  /** Whether the size came by ftruncate(2), as the truncate command does it. */
  readonly hasHandle?: boolean
}

export class DiskFile {
  constructor(
    readonly disk: WritableDisk,
    private readonly options: DiskFileOptions,
  ) {}

  /** @returns how many of the `size` bytes from `start` of `source` there was room for at `offset` */
  write(source: Buffer, start: number, size: number, offset: number): number {
    const length = this.room(offset, size)
    if (length > 0) this.disk.write(source, start, length, offset)
    return length
  }

  fallocate(mode: number, offset: number, length: number): number {
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
    if (!isZeroing && length > 0) this.disk.reserve(offset, length)
    const zeroed = isZeroing ? Math.max(0, this.clip(offset, length)) : 0
    if (zeroed > 0) {
      this.disk.zero(offset, zeroed)
      this.options.onZero(zeroed)
    }
    return 0
  }

  /** Whether attributes may be set so, which are now `now`: 0 or an errno. */
  setattr(change: AttributeChange, now: { mode: number; uid: number; gid: number }): number {
    const { mode = now.mode, uid = now.uid, gid = now.gid, sizeBytes, hasHandle } = change
    const isSame = (mode & PERMISSIONS) === (now.mode & PERMISSIONS)
    if (!isSame || uid !== now.uid || gid !== now.gid) return -EPERM
    return sizeBytes === undefined ? 0 : this.resize(sizeBytes, hasHandle === true)
  }

  flush(): number {
    this.options.onFlush()
    this.disk.flush()
    return 0
  }

  private resize(sizeBytes: number, hasHandle: boolean): number {
    if (sizeBytes === this.disk.sizeBytes) return 0
    // This is what opening with O_TRUNC sends; the kernel then learns that the size is what it was.
    // truncate(2) to 0 by name looks the same, and is a success without an effect.
    if (sizeBytes === 0 && !hasHandle) return 0
    if (sizeBytes < this.disk.sizeBytes || !this.options.isGrowable) return -EPERM
    return Math.min(0, this.room(0, sizeBytes))
  }

  /** How many of `length` bytes at `offset` there is room for, once it has grown if it may. */
  private room(offset: number, length: number): number {
    const end = offset + length
    if (end <= this.disk.sizeBytes || !this.options.isGrowable) return this.clip(offset, length)
    if (!Number.isSafeInteger(end)) return -EFBIG
    this.disk.grow(Math.ceil(end / SECTOR_BYTES) * SECTOR_BYTES)
    return length
  }

  private clip(offset: number, length: number): number {
    const { sizeBytes } = this.disk
    if (offset + length <= sizeBytes) return length
    return offset < sizeBytes ? sizeBytes - offset : -ENOSPC
  }
}
