/**
 * Blocks of one object in two files: the data, sparse and as large as the object, and an index with a checksum for each block.
 *
 *  (1) A block counts as present only by its index entry, which is written after its data. Both may be lost or torn, after a
 *      kill, a power cut, or by rot: each read compares the checksum, and a block that does not fit is fetched anew.
 *  (2) So several processes may write and give up blocks at the same time. A reader that comes between reads a hole, whose
 *      checksum is another one, or bytes that are right.
 *  (3) The checksum covers the block's number, so that no block passes for another one.
 */
import { crc32 } from 'node:zlib'
import { SystemError } from '../../errors.js'
import {
  errno,
  FALLOC_FL_KEEP_SIZE,
  FALLOC_FL_PUNCH_HOLE,
  fallocate,
  pread,
  pwrite,
} from '../../io/libc.js'

/** An index entry: the checksum, and when the block was last used, in seconds since EPOCH; 0 means that it is absent. */
export const ENTRY_BYTES = 8
/** 2020-01-01. */
const EPOCH_SECONDS = 1_577_836_800
/** How old the time of use must be before a read renews it. */
const RENEWED_AFTER_SECONDS = 60

/** The descriptors of an object's two files: plain data. */
export interface BlockFiles {
  readonly data: number
  readonly index: number
}

export class BlockFile {
  private readonly entry = Buffer.alloc(ENTRY_BYTES)

  constructor(
    readonly files: BlockFiles,
    readonly blockBytes: number,
    readonly sizeBytes: number,
  ) {}

  /** Returns the size of a block: the last one may be shorter. */
  lengthOf(block: number): number {
    return Math.min(this.blockBytes, this.sizeBytes - block * this.blockBytes)
  }

  /** Fills `target` with a whole block. Returns false if the block is absent, or does not fit its checksum. */
  read(block: number, target: Buffer): boolean {
    const { entry, files } = this
    const length = this.lengthOf(block)
    if (!this.readEntry(block)) return false
    if (pread(files.data, target, length, block * this.blockBytes) !== length) return false
    if (checksum(block, target.subarray(0, length)) !== entry.readUInt32LE(0)) return false
    this.renew(block)
    return true
  }

  /** Reports whether the block has an entry; its data may not fit. */
  has(block: number): boolean {
    return this.readEntry(block)
  }

  /** Writes a whole block. Throws SystemError. */
  put(block: number, bytes: Buffer): void {
    this.write(this.files.data, bytes, block * this.blockBytes)
    const { entry } = this
    entry.writeUInt32LE(checksum(block, bytes), 0)
    entry.writeUInt32LE(nowSeconds(), 4)
    this.write(this.files.index, entry, block * ENTRY_BYTES)
  }

  /** Forgets `count` blocks from `first` on, and gives back their space. Returns false if the file system cannot do that. */
  drop(first: number, count: number): boolean {
    this.write(this.files.index, Buffer.alloc(count * ENTRY_BYTES), first * ENTRY_BYTES)
    const at = first * this.blockBytes
    const length = count * this.blockBytes
    return fallocate(this.files.data, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, length) === 0
  }

  private readEntry(block: number): boolean {
    const got = pread(this.files.index, this.entry, ENTRY_BYTES, block * ENTRY_BYTES)
    return got === ENTRY_BYTES && this.entry.readUInt32LE(4) !== 0
  }

  /** A renewed entry of a block that was given up meanwhile does not fit the hole there, and counts as absent. */
  private renew(block: number): void {
    const { entry } = this
    const now = nowSeconds()
    if (now - entry.readUInt32LE(4) < RENEWED_AFTER_SECONDS) return
    entry.writeUInt32LE(now, 4)
    pwrite(this.files.index, entry, ENTRY_BYTES, block * ENTRY_BYTES)
  }

  private write(fd: number, bytes: Buffer, at: number): void {
    if (pwrite(fd, bytes, bytes.length, at) === bytes.length) return
    throw new SystemError('write', errno())
  }
}

export const nowSeconds = (): number => Math.floor(Date.now() / 1000) - EPOCH_SECONDS

const seed = Buffer.alloc(4)

function checksum(block: number, bytes: Buffer): number {
  seed.writeUInt32LE(block, 0)
  return crc32(bytes, crc32(seed))
}
