/** The counts of a mount's stats.json, and the rates between two of them. */
import { MountError } from '../errors.js'
import type { Stats } from '../fs/status/stats.js'

/** The file stats.json. */
export interface StatsFile extends Stats {
  readonly uptimeSeconds: number
  readonly threads: number
  readonly memory: { readonly rssBytes: number; readonly threadHeapBytes: number }
}

export interface Counted {
  readonly stats: StatsFile | undefined
  /** When it was read, in seconds of any clock that goes on; undefined for the moment of mounting. */
  readonly at: number | undefined
}

/** The moment of mounting, at which all counts were 0. */
export const SINCE_MOUNT: Counted = { stats: undefined, at: undefined }

export interface Rates {
  /** The time between the two counts. */
  readonly seconds: number
  readonly perSecond: {
    readonly reads: number
    readonly bytesRead: number
    readonly writes: number
    readonly bytesWritten: number
    readonly otherRequests: number
    readonly errors: number
    readonly flushes: number
  }
  /** The part of table lookups that memory has answered, 0 to 1; undefined if there were none. */
  readonly metadataHits: number | undefined
}

/** Returns the counts in `text`, the content of stats.json. Throws MountError. */
export function countedOf(text: string, at: number, name: string): Counted {
  try {
    const stats = JSON.parse(text) as StatsFile
    const numbers = [stats.uptimeSeconds, stats.bytesRead, stats.bytesWritten, stats.errors]
    const parts = [stats.requests, stats.caches.metadata, stats.latency.read, stats.memory]
    if (numbers.every(Number.isFinite) && parts.every(part => typeof part === 'object')) {
      return { stats, at }
    }
  } catch {
    // The same as a file with other content.
  }
  throw new MountError(`${name}: this version of vimgfs does not understand its statistics`)
}

export function ratesBetween(before: Counted, now: Counted): Rates {
  const seconds =
    before.at === undefined || now.at === undefined
      ? Math.max(1, now.stats?.uptimeSeconds ?? 0)
      : Math.max(0.001, now.at - before.at)
  const rate = (count: (stats: StatsFile) => number) =>
    Number(((countIn(now, count) - countIn(before, count)) / seconds).toFixed(3))
  const hits = difference(before, now, stats => stats.caches.metadata.hits)
  const misses = difference(before, now, stats => stats.caches.metadata.misses)
  return {
    seconds: Number(seconds.toFixed(3)),
    perSecond: {
      reads: rate(stats => requests(stats, 'READ')),
      bytesRead: rate(stats => stats.bytesRead),
      writes: rate(stats => requests(stats, 'WRITE')),
      bytesWritten: rate(stats => stats.bytesWritten),
      otherRequests: rate(others),
      errors: rate(stats => stats.errors),
      flushes: rate(stats => stats.flushes),
    },
    metadataHits: hits + misses > 0 ? hits / (hits + misses) : undefined,
  }
}

export const requests = (stats: StatsFile, name: string): number => stats.requests[name] ?? 0

/** Returns how many requests were neither reads nor writes. */
export const others = (stats: StatsFile): number =>
  Object.values(stats.requests).reduce((all, count) => all + count, 0) -
  requests(stats, 'READ') -
  requests(stats, 'WRITE')

const countIn = ({ stats }: Counted, count: (stats: StatsFile) => number): number =>
  stats ? count(stats) : 0

const difference = (before: Counted, now: Counted, count: (stats: StatsFile) => number): number =>
  countIn(now, count) - countIn(before, count)
