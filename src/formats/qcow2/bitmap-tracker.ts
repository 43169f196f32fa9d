/** Records writes in an image's bitmaps. Each thread has its own tracker, over the same memory. */
import type { BitmapMemory, BitmapRecord } from './bitmap-memory.js'

export class BitmapTracker {
  private readonly records: readonly RecordedBits[]

  constructor(memory: BitmapMemory) {
    this.records = memory.bitmaps.flatMap(({ record, granularityBits }) =>
      record ? [new RecordedBits(record, granularityBits, memory.clusterBytes)] : [],
    )
  }

  /**
   * Records that `length` bytes of the disk from `offset` on change: by writing, zeroing or discarding. Several threads may
   * call it at once.
   */
  mark(offset: number, length: number): void {
    if (length === 0) return
    for (const record of this.records) record.mark(offset, offset + length - 1)
  }
}

class RecordedBits {
  private readonly bits: Uint8Array
  private readonly changed: Uint8Array
  /** Bits for each byte of the disk: a power of two, so that the product is exact. */
  private readonly scale: number
  private readonly lastBit: number

  constructor(
    record: BitmapRecord,
    granularityBits: number,
    private readonly clusterBytes: number,
  ) {
    this.bits = new Uint8Array(record.bits)
    this.changed = new Uint8Array(record.changed)
    this.scale = 2 ** -granularityBits
    this.lastBit = this.bits.length * 8 - 1
  }

  /** Records the bytes `first` to `last` of the disk. Does not record what lies past the room. */
  mark(first: number, last: number): void {
    const from = Math.floor(first * this.scale)
    const to = Math.min(Math.floor(last * this.scale), this.lastBit)
    if (from > to) return
    const firstByte = Math.floor(from / 8)
    const lastByte = Math.floor(to / 8)
    const head = (0xff << (from % 8)) & 0xff
    const tail = 0xff >> (7 - (to % 8))
    if (firstByte === lastByte) {
      this.set(firstByte, head & tail)
      return
    }
    this.set(firstByte, head)
    this.set(lastByte, tail)
    if (lastByte - firstByte > 1) this.fill(firstByte + 1, lastByte)
  }

  private set(byte: number, mask: number): void {
    if ((this.bits[byte]! & mask) === mask) return
    Atomics.or(this.bits, byte, mask)
    this.changed[Math.floor(byte / this.clusterBytes)] = 1
  }

  /** Sets whole bytes. That cannot lose bits of other threads, since these only set bits, too. */
  private fill(start: number, end: number): void {
    this.bits.fill(0xff, start, end)
    const chunk = Math.floor(start / this.clusterBytes)
    this.changed.fill(1, chunk, Math.floor((end - 1) / this.clusterBytes) + 1)
  }
}
