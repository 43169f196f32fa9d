/**
 * A part of a disk that is written, which programs see as a disk of its own. Its size is fixed, and nothing that is asked of it
 * reaches the rest of the disk.
 */
import { ImageError } from '../../errors.js'
import type { WritableDisk } from '../../formats/writable.js'

export class PartitionDisk implements WritableDisk {
  /** @param start the place of its first byte on `disk` */
  constructor(
    private readonly disk: WritableDisk,
    private readonly start: number,
    readonly sizeBytes: number,
  ) {}

  get modified(): number {
    return this.disk.modified
  }

  get isDirty(): boolean {
    return this.disk.isDirty
  }

  get isMapped(): boolean {
    return this.disk.isMapped
  }

  noteMaps(): void {
    this.disk.noteMaps()
  }

  get failure(): string {
    return this.disk.failure
  }

  get writeErrno(): number {
    return this.disk.writeErrno
  }

  end(why: string): void {
    this.disk.end(why)
  }

  checkFiles(): void {
    this.disk.checkFiles()
  }

  beginRead(offset: number, length: number): void {
    this.disk.beginRead(this.placeOf(offset, length), length)
  }

  endRead(): void {
    this.disk.endRead()
  }

  write(source: Buffer, start: number, length: number, offset: number): void {
    this.disk.write(source, start, length, this.placeOf(offset, length))
  }

  zero(offset: number, length: number): void {
    this.disk.zero(this.placeOf(offset, length), length)
  }

  reserve(offset: number, length: number): void {
    this.disk.reserve(this.placeOf(offset, length), length)
  }

  own(offset: number, length: number, areZeros: boolean): void {
    this.disk.own(this.placeOf(offset, length), length, areZeros)
  }

  flush(): void {
    this.disk.flush()
  }

  grow(): void {
    throw new ImageError('UNSUPPORTED', 'the size of a partition is fixed')
  }

  /** The whole disk is closed elsewhere. */
  close(): readonly string[] {
    return []
  }

  private placeOf(offset: number, length: number): number {
    if (offset < 0 || length < 0 || offset + length > this.sizeBytes) {
      throw new RangeError(`${length} bytes at ${offset} of a partition of ${this.sizeBytes}`)
    }
    return this.start + offset
  }
}
