/** Counts of all that sources have done since the process began, for stats.json: memory that the network thread writes. */
const FIELDS = [
  'requests',
  'fetchedBytes',
  'retries',
  'failures',
  'prefetchedBytes',
  'prefetchBytes',
] as const

export type Counter = (typeof FIELDS)[number]

export class Counters {
  private readonly values: Float64Array

  constructor(memory: SharedArrayBuffer) {
    this.values = new Float64Array(memory)
  }

  static memory(): SharedArrayBuffer {
    return new SharedArrayBuffer(8 * FIELDS.length)
  }

  add(counter: Counter, amount = 1): void {
    const index = FIELDS.indexOf(counter)
    this.values[index] = (this.values[index] as number) + amount
  }

  read(): Record<Counter, number> {
    return Object.fromEntries(FIELDS.map((name, i) => [name, this.values[i]])) as Record<
      Counter,
      number
    >
  }
}
