/**
 * The requests that change the disk's file. It is what a block device is: its size stays, opening it
 * with O_TRUNC changes nothing, and what is written behind its end finds no space. The methods return
 * what those of ImageFs do.
 */
import { constants } from 'node:os'
import type { WritableDisk } from '../formats/writable.js'
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE } from '../io/libc.js'
import type { Request } from './image-fs.js'
import { FALLOCATE_IN, FATTR, SETATTR_IN, WRITE_IN, WRITE_OUT } from './protocol.js'

const { EFBIG, EINVAL, ENOSPC, EOPNOTSUPP, EPERM } = constants.errno

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

export class DiskFile {
  constructor(
    readonly disk: WritableDisk,
    private readonly options: DiskFileOptions,
  ) {}

  write({ message, args, end, payload }: Request): number {
    const { at } = WRITE_IN
    const size = message.readUInt32LE(args + at.size)
    const offset =
      message.readUInt32LE(args + at.offset) + message.readUInt32LE(args + at.offset + 4) * 2 ** 32
    const start = args + WRITE_IN.size
    if (size > end - start) return -EINVAL
    const length = this.room(offset, size)
    if (length < 0) return length
    if (length > 0) this.disk.write(message, start, length, offset)
    payload.writeUInt32LE(length, WRITE_OUT.at.size)
    payload.writeUInt32LE(0, WRITE_OUT.at.padding)
    return WRITE_OUT.size
  }

  fallocate({ message, args }: Request): number {
    const { offset, length, mode } = FALLOCATE_IN.decode(message, args)
    const keepsSize = (mode & FALLOC_FL_KEEP_SIZE) !== 0
    const kind = mode & ~FALLOC_FL_KEEP_SIZE
    const isPunching = kind === FALLOC_FL_PUNCH_HOLE && keepsSize
    if (kind !== 0 && kind !== FALLOC_FL_ZERO_RANGE && !isPunching) return -EOPNOTSUPP
    const isZeroing = kind !== 0
    // Zeros behind the end are there already, and space within it is there for whoever writes.
    if (!isZeroing || !keepsSize) {
      const room = keepsSize ? this.clip(offset, length) : this.room(offset, length)
      if (room < 0) return room
      if (room < length) return -ENOSPC
    }
    const zeroed = isZeroing ? Math.max(0, this.clip(offset, length)) : 0
    if (zeroed > 0) {
      this.disk.zero(offset, zeroed)
      this.options.onZero(zeroed)
    }
    return 0
  }

  /**
   * Whether attributes may be set so: 0 or an errno. Times are those of the last write, whatever one
   * asks for.
   */
  setattr({ message, args }: Request, now: { mode: number; uid: number; gid: number }): number {
    const { valid, ...asked } = SETATTR_IN.decode(message, args)
    const isChanged =
      (valid & FATTR.MODE && (asked.mode & PERMISSIONS) !== (now.mode & PERMISSIONS)) ||
      (valid & FATTR.UID && asked.uid !== now.uid) ||
      (valid & FATTR.GID && asked.gid !== now.gid)
    if (isChanged) return -EPERM
    return valid & FATTR.SIZE ? this.resize(asked.size, (valid & FATTR.FH) !== 0) : 0
  }

  flush(): number {
    this.options.onFlush()
    this.disk.flush()
    return 0
  }

  /** @param hasHandle whether it came by ftruncate(2), as the truncate command does it */
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
