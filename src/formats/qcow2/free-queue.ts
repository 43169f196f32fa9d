/**
 * Clusters to which the tables in memory no longer point, while those in the file still may. Only after a flush are they
 * counted down, and may be used again. The queue is in shared memory; a thread puts and takes while it holds the exclusive
 * side of the disk's lock.
 */
const RECORDS = 32768
/** The most clusters of one record, so that giving it back changes a bounded number of tables. */
const MAX_CLUSTERS = 1024
const HEAD = 0
const TAIL = 1
const FIRST_RECORD = 2

export function createFreeMemory(): SharedArrayBuffer {
  return new SharedArrayBuffer(8 * (FIRST_RECORD + 2 * RECORDS))
}

export interface FreedRun {
  /** The first cluster's number in the file. */
  readonly cluster: number
  readonly clusters: number
}

export class FreeQueue {
  private readonly values: Float64Array

  constructor(memory: SharedArrayBuffer) {
    this.values = new Float64Array(memory)
  }

  /** The number of all records since the beginning, taken or not. */
  get end(): number {
    return this.values[TAIL] as number
  }

  get isEmpty(): boolean {
    return this.values[HEAD] === this.values[TAIL]
  }

  hasCapacity(records: number): boolean {
    return RECORDS - (this.end - (this.values[HEAD] as number)) >= records
  }

  /** Notes that one reference to each of these clusters is gone. */
  put(cluster: number, clusters: number): void {
    for (let done = 0; done < clusters; done += MAX_CLUSTERS) {
      if (!this.hasCapacity(1)) throw new Error('the queue of freed clusters is full')
      const at = placeOf(this.end)
      this.values[at] = cluster + done
      this.values[at + 1] = Math.min(MAX_CLUSTERS, clusters - done)
      this.values[TAIL]!++
    }
  }

  /** Removes and returns the oldest record before record number `end`. */
  take(end: number): FreedRun | undefined {
    const head = this.values[HEAD] as number
    if (head >= end) return undefined
    const at = placeOf(head)
    this.values[HEAD] = head + 1
    return { cluster: this.values[at] as number, clusters: this.values[at + 1] as number }
  }
}

const placeOf = (record: number): number => FIRST_RECORD + 2 * (record % RECORDS)
