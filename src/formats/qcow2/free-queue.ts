/**
 * Clusters that the tables in memory no longer point at, while those in the file may: they are counted
 * down, and may be used again, only after a flush. In shared memory; whoever holds the exclusive side of
 * the disk's lock puts and takes.
 */
const RECORDS = 32768
/** Of one record: giving it back touches a bounded number of tables. */
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

  /** Records taken and to be taken, counted since the beginning. */
  get end(): number {
    return this.values[TAIL] as number
  }

  get isEmpty(): boolean {
    return this.values[HEAD] === this.values[TAIL]
  }

  hasRoom(records: number): boolean {
    return RECORDS - (this.end - (this.values[HEAD] as number)) >= records
  }

  /** One reference to each of these clusters is gone. */
  put(cluster: number, clusters: number): void {
    for (let done = 0; done < clusters; done += MAX_CLUSTERS) {
      if (!this.hasRoom(1)) throw new Error('the queue of freed clusters is full')
      const at = placeOf(this.end)
      this.values[at] = cluster + done
      this.values[at + 1] = Math.min(MAX_CLUSTERS, clusters - done)
      this.values[TAIL]!++
    }
  }

  /** The oldest record before the record number `end`, which then is no longer in the queue. */
  take(end: number): FreedRun | undefined {
    const head = this.values[HEAD] as number
    if (head >= end) return undefined
    const at = placeOf(head)
    this.values[HEAD] = head + 1
    return { cluster: this.values[at] as number, clusters: this.values[at + 1] as number }
  }
}

const placeOf = (record: number): number => FIRST_RECORD + 2 * (record % RECORDS)
