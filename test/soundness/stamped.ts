/**
 * One model that several threads share, a sector at a time, without a lock.
 *
 * Each sector has a version. A writer claims the sector, records as "begun" the version that it writes,
 * writes it, and records it as "done". A reader looks at "done" before the read and at "begun" after it,
 * and so knows which versions it may find: a lower one is stale, a mixture is torn.
 */
export const SECTOR = 512
/** Versions that are multiples of this are zeros. */
const ZERO_EACH = 4

export interface StampMemory {
  /** Bytes that one writer claims and writes as one: a sector, or a part of one. */
  readonly unitBytes: number
  readonly claimed: SharedArrayBuffer
  readonly begun: SharedArrayBuffer
  readonly done: SharedArrayBuffer
  /** What the disk held at first: version 0. */
  readonly initial: SharedArrayBuffer
}

export function createStamps(disk: Buffer, unitBytes = SECTOR): StampMemory {
  const sectors = disk.length / unitBytes
  const words = () => new SharedArrayBuffer(4 * sectors)
  const initial = new SharedArrayBuffer(disk.length)
  disk.copy(Buffer.from(initial))
  return { unitBytes, claimed: words(), begun: words(), done: words(), initial }
}

export class Stamps {
  readonly unitBytes: number
  readonly sectors: number
  private readonly claimed: Int32Array
  private readonly begun: Int32Array
  private readonly done: Int32Array
  private readonly initial: Buffer

  constructor(memory: StampMemory) {
    this.unitBytes = memory.unitBytes
    this.claimed = new Int32Array(memory.claimed)
    this.begun = new Int32Array(memory.begun)
    this.done = new Int32Array(memory.done)
    this.initial = Buffer.from(memory.initial)
    this.sectors = this.claimed.length
  }

  /** Claims sectors for one writer; returns false if another writer has one of them. */
  claim(first: number, count: number): boolean {
    for (let i = 0; i < count; i++) {
      if (Atomics.compareExchange(this.claimed, first + i, 0, 1) === 0) continue
      this.release(first, i)
      return false
    }
    return true
  }

  release(first: number, count: number): void {
    for (let i = 0; i < count; i++) Atomics.store(this.claimed, first + i, 0)
  }

  /** Begins the next version of claimed sectors; returns the bytes to write to them. */
  begin(first: number, count: number, isZero: boolean): Buffer {
    const bytes = Buffer.alloc(count * this.unitBytes)
    for (let i = 0; i < count; i++) {
      const sector = first + i
      const last = Atomics.load(this.begun, sector)
      const version = isZero
        ? last + ZERO_EACH - (last % ZERO_EACH)
        : last + 1 + (last % ZERO_EACH === ZERO_EACH - 1 ? 1 : 0)
      Atomics.store(this.begun, sector, version)
      if (!isZero)
        stamp(bytes.subarray(i * this.unitBytes, (i + 1) * this.unitBytes), sector, version)
    }
    return bytes
  }

  end(first: number, count: number): void {
    for (let i = 0; i < count; i++) {
      Atomics.store(this.done, first + i, Atomics.load(this.begun, first + i))
    }
  }

  /** Returns the lowest version of each sector that a read may find if it begins now. */
  lowest(first: number, count: number): number[] {
    return Array.from({ length: count }, (_, i) => Atomics.load(this.done, first + i))
  }

  /** After a read: throws unless each sector is of a version from `lowest` to the last that has begun. */
  check(bytes: Buffer, first: number, lowest: readonly number[], who: string): void {
    lowest.forEach((low, i) => {
      const sector = first + i
      const high = Atomics.load(this.begun, sector)
      const actual = bytes.subarray(i * this.unitBytes, (i + 1) * this.unitBytes)
      const problem = this.problem(actual, sector, low, high)
      if (problem === undefined) return
      throw new Error(`${who}: sector ${sector} (versions ${low} to ${high}) ${problem}`)
    })
  }

  private problem(actual: Buffer, sector: number, low: number, high: number): string | undefined {
    const begins = sector * this.unitBytes
    if (low === 0 && actual.equals(this.initial.subarray(begins, begins + this.unitBytes)))
      return undefined
    if (actual.equals(ZEROS.subarray(0, this.unitBytes))) {
      const zero = high - (high % ZERO_EACH)
      return zero >= Math.max(low, 1) ? undefined : 'reads as zeros'
    }
    const version = actual.readInt32LE(0)
    const whole = stamp(Buffer.alloc(this.unitBytes), sector, version)
    if (!actual.equals(whole)) return `is torn or foreign: ${actual.toString('hex', 0, 16)}`
    if (version < low) return `is stale: version ${version}`
    return version > high ? `is of version ${version}, which has not begun` : undefined
  }
}

const ZEROS = Buffer.alloc(SECTOR)

/** The version, and words that no other sector or version has. */
function stamp(target: Buffer, sector: number, version: number): Buffer {
  target.writeInt32LE(version, 0)
  let word = Math.imul(sector + 1, 0x9e3779b1) ^ Math.imul(version, 0x85ebca6b)
  for (let i = 1; i < target.length / 4; i++) {
    word = Math.imul(word, 1664525) + 1013904223
    target.writeInt32LE(word | 0, i * 4)
  }
  return target
}
