/**
 * The counts of the threads, in shared memory. Each thread writes its own region; showing the statistics adds them up. The
 * stores are plain, so a count that is read while it rises may be one too low.
 */
import { STATISTIC, STATISTICS } from '../../cache/statistics.js'
import { OPCODE } from '../protocol/protocol.js'

/** Opcodes are below this; others count as 0. */
const OPCODES = 64
/** Buckets of latencies: four for each octave, from 250 ns to 17 minutes. */
const BUCKETS = 128
const BUCKETS_PER_OCTAVE = 4
const SMALLEST_US = 0.25
/** One of so many requests is timed: reading the clock costs as much as a cached lookup. */
const SAMPLED = 16

const CACHES = OPCODES + 4
const LATENCIES = CACHES + 2 * STATISTICS
const AT = {
  requests: 0,
  bytesRead: OPCODES,
  bytesWritten: OPCODES + 1,
  errors: OPCODES + 2,
  flushes: OPCODES + 3,
  metadata: CACHES,
  clusters: CACHES + STATISTICS,
  reads: LATENCIES,
  writes: LATENCIES + BUCKETS,
  others: LATENCIES + 2 * BUCKETS,
}
const REGION = LATENCIES + 3 * BUCKETS

/** One thread's region. */
export class WorkerStats {
  readonly metadata: Float64Array
  readonly clusters: Float64Array
  private readonly region: Float64Array
  private sampled = 0

  constructor(shared: SharedArrayBuffer, worker: number) {
    this.region = regionOf(shared, worker)
    this.metadata = this.region.subarray(AT.metadata, AT.metadata + STATISTICS)
    this.clusters = this.region.subarray(AT.clusters, AT.clusters + STATISTICS)
  }

  /** Returns the time if this request is to be timed, else 0. */
  start(): number {
    return ++this.sampled % SAMPLED === 0 ? performance.now() : 0
  }

  /**
   * @param error the errno of the reply, 0 or negative
   * @param dataBytes the bytes that a READ has read or a WRITE has written
   * @param started what `start()` returned
   */
  count(opcode: number, error: number, dataBytes: number, started: number): void {
    const { region } = this
    region[opcode < OPCODES ? opcode : 0]!++
    if (error !== 0) region[AT.errors]!++
    else if (opcode === OPCODE.READ) region[AT.bytesRead]! += dataBytes
    else if (opcode === OPCODE.WRITE) region[AT.bytesWritten]! += dataBytes
    if (started !== 0) {
      const bucket = bucketOf((performance.now() - started) * 1000)
      const at = opcode === OPCODE.READ ? AT.reads : opcode === OPCODE.WRITE ? AT.writes : AT.others
      region[at + bucket]!++
    }
  }

  countFlush(): void {
    this.region[AT.flushes]!++
  }
}

/** @param workers the number of threads; each has a region */
export function sharedStats(workers: number): SharedArrayBuffer {
  return new SharedArrayBuffer(workers * REGION * 8)
}

export interface Stats {
  requests: Record<string, number>
  errors: number
  bytesRead: number
  bytesWritten: number
  /** How often the disk was flushed: for programs, by the timer, at the end. */
  flushes: number
  caches: { metadata: CacheStats; clusters: CacheStats }
  /** In microseconds, of one request in 16. */
  latency: { read: LatencyStats; write: LatencyStats; other: LatencyStats }
}
type CacheStats = Record<keyof typeof STATISTIC, number>
interface LatencyStats {
  samples: number
  p50: number
  p90: number
  p99: number
  max: number
}

/** @param nameOf returns an opcode's name */
export function readStats(shared: SharedArrayBuffer, nameOf: (opcode: number) => string): Stats {
  const sum = new Float64Array(REGION)
  for (let worker = 0; worker < shared.byteLength / (REGION * 8); worker++) {
    regionOf(shared, worker).forEach((value, index) => {
      sum[index]! += value
    })
  }
  const requests: Record<string, number> = {}
  sum.subarray(0, OPCODES).forEach((count, opcode) => {
    if (count > 0) requests[nameOf(opcode)] = count
  })
  return {
    requests,
    errors: sum[AT.errors] as number,
    bytesRead: sum[AT.bytesRead] as number,
    bytesWritten: sum[AT.bytesWritten] as number,
    flushes: sum[AT.flushes] as number,
    caches: { metadata: cacheStats(sum, AT.metadata), clusters: cacheStats(sum, AT.clusters) },
    latency: {
      read: latencyStats(sum, AT.reads),
      write: latencyStats(sum, AT.writes),
      other: latencyStats(sum, AT.others),
    },
  }
}

function regionOf(shared: SharedArrayBuffer, worker: number): Float64Array {
  return new Float64Array(shared, worker * REGION * 8, REGION)
}

function bucketOf(microseconds: number): number {
  const bucket = Math.floor(
    Math.log2(Math.max(microseconds, SMALLEST_US) / SMALLEST_US) * BUCKETS_PER_OCTAVE,
  )
  return Math.min(bucket, BUCKETS - 1)
}

function cacheStats(sum: Float64Array, at: number): CacheStats {
  const value = (name: keyof typeof STATISTIC) => sum[at + STATISTIC[name]] as number
  return {
    hits: value('hits'),
    misses: value('misses'),
    evictions: value('evictions'),
    bytes: value('bytes'),
  }
}

/** Computes percentiles: the upper ends of their buckets. */
function latencyStats(sum: Float64Array, at: number): LatencyStats {
  const buckets = sum.subarray(at, at + BUCKETS)
  const samples = buckets.reduce((all, count) => all + count, 0)
  const percentile = (share: number) => {
    let below = 0
    const bucket = buckets.findIndex(count => {
      below += count
      return count > 0 && below >= samples * share
    })
    if (bucket < 0) return 0
    return Number((SMALLEST_US * 2 ** ((bucket + 1) / BUCKETS_PER_OCTAVE)).toPrecision(3))
  }
  return {
    samples,
    p50: percentile(0.5),
    p90: percentile(0.9),
    p99: percentile(0.99),
    max: percentile(1),
  }
}
