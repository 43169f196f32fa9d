/**
 * The texts of `.vimgfs`. status.json is made for each read; one read gets all of it. stats.json is made at each opening
 * and kept in a slot of shared memory, so that all reads of a handle see one text, whichever worker serves them.
 */
const SLOTS = 16
const SLOT_BYTES = 16 * 1024

export class TextSlots {
  private readonly next: Int32Array
  private readonly lengths: Int32Array
  private readonly bytes: Buffer

  constructor(readonly shared = new SharedArrayBuffer(8 + SLOTS * 4 + SLOTS * SLOT_BYTES)) {
    this.next = new Int32Array(shared, 0, 1)
    this.lengths = new Int32Array(shared, 8, SLOTS)
    this.bytes = Buffer.from(shared, 8 + SLOTS * 4)
  }

  /** Keeps `text` until 15 more texts are put. Returns its slot. */
  put(text: string): number {
    const slot = Atomics.add(this.next, 0, 1) & (SLOTS - 1)
    const length = this.bytes.write(text, slot * SLOT_BYTES, SLOT_BYTES)
    Atomics.store(this.lengths, slot, length)
    return slot
  }

  get(slot: number): Buffer {
    const at = (slot & (SLOTS - 1)) * SLOT_BYTES
    return this.bytes.subarray(at, at + Atomics.load(this.lengths, slot & (SLOTS - 1)))
  }
}
