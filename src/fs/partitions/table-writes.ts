/**
 * Whether programs have written where a partition table may be since the listing was made, in memory that all threads share. Then
 * whoever syncs or closes a file of the disk waits until the listing shows what the table says now.
 */
const WRITES = 0
const SHOWN = 1
const WORDS = 2

export class TableWrites {
  private readonly words: Int32Array

  constructor(readonly shared = new SharedArrayBuffer(4 * WORDS)) {
    this.words = new Int32Array(shared)
  }

  /** Notes a write, after it is done and before it is answered. */
  note(): void {
    Atomics.add(this.words, WRITES, 1)
  }

  /** How many writes there were. */
  get count(): number {
    return Atomics.load(this.words, WRITES)
  }

  /** Notes that the listing shows the table as it was after `count` writes. */
  show(count: number): void {
    Atomics.store(this.words, SHOWN, count)
  }

  /** Whether the listing shows the table as it is. */
  get areShown(): boolean {
    return Atomics.load(this.words, SHOWN) === this.count
  }
}
