/** The text that `vimgfs stats` prints for people. */
import { printable } from '../errors.js'
import { humanSize } from './human.js'
import {
  type Counted,
  others,
  type Rates,
  ratesBetween,
  requests,
  SINCE_MOUNT,
  type StatsFile,
} from './stats-rates.js'
import { textTable } from './text-table.js'

/** Returns the table of one moment: counts since mounting, their averages, and how long requests took. */
export function statsTable(mountpoint: string, now: Counted): string {
  const stats = now.stats as StatsFile
  const { perSecond, metadataHits } = ratesBetween(SINCE_MOUNT, now)
  const row = (name: string, count: number, rate: number) => [name, String(count), short(rate)]
  const size = (name: string, bytes: number, rate: number) => [
    name,
    humanSize(bytes),
    humanSize(Math.round(rate)),
  ]
  const table = textTable(
    [
      ['', 'SINCE MOUNTING', 'PER SECOND'],
      row('reads', requests(stats, 'READ'), perSecond.reads),
      size('read', stats.bytesRead, perSecond.bytesRead),
      row('writes', requests(stats, 'WRITE'), perSecond.writes),
      size('written', stats.bytesWritten, perSecond.bytesWritten),
      row('other requests', others(stats), perSecond.otherRequests),
      row('errors', stats.errors, perSecond.errors),
      row('flushes', stats.flushes, perSecond.flushes),
    ],
    [1, 2],
  )
  const { latency } = stats
  const times = textTable(
    [
      ['MICROSECONDS', 'P50', 'P90', 'P99', 'MAX'],
      ...(['read', 'write', 'other'] as const).map(name => {
        const { samples, p50, p90, p99, max } = latency[name]
        return [name, ...[p50, p90, p99, max].map(time => (samples > 0 ? String(time) : '-'))]
      }),
    ],
    [1, 2, 3, 4],
  )
  const facts = [
    `${plural(stats.uptimeSeconds, 'second')} since mounting`,
    plural(stats.threads, 'thread'),
    `${humanSize(stats.memory.rssBytes)} of memory`,
    `tables found in memory: ${percent(metadataHits)}`,
  ]
  return `${printable(mountpoint)}: ${facts.join(', ')}\n\n${table}\n${times}`
}

const WIDTHS = [9, 10, 9, 10, 9, 8, 8, 7]
const COLUMNS = ['reads/s', 'read/s', 'writes/s', 'written/s', 'others/s', 'errors/s', 'flush/s']

/** Returns the title over the lines of --watch. */
export const watchHead = (): string => lineOf([...COLUMNS, 'tables'])

/** Returns a line of --watch. */
export const watchLine = ({ perSecond, metadataHits }: Rates): string =>
  lineOf([
    short(perSecond.reads),
    humanSize(Math.round(perSecond.bytesRead)),
    short(perSecond.writes),
    humanSize(Math.round(perSecond.bytesWritten)),
    short(perSecond.otherRequests),
    short(perSecond.errors),
    short(perSecond.flushes),
    percent(metadataHits),
  ])

const lineOf = (cells: readonly string[]): string =>
  `${cells.map((cell, at) => cell.padStart(WIDTHS[at] as number)).join(' ')}\n`

const short = (rate: number): string => (rate < 10 ? rate.toFixed(1) : String(Math.round(rate)))
const percent = (part: number | undefined): string =>
  part === undefined ? '-' : `${Math.round(part * 100)} %`
const plural = (count: number, name: string): string => `${count} ${name}${count === 1 ? '' : 's'}`
