/** `vimgfs stats`: shows what a mount has served, as rates. */
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { MountError, UsageError } from '../errors.js'
import { runAsOwner } from '../fs/mounting/running-server.js'
import { type MountInfo, mountOn } from '../io/mountinfo.js'
import { parse } from './arguments.js'
import { OPTIONS } from './help/stats.js'
import { print } from './output.js'
import { openMetrics } from './stats-metrics.js'
import { type Counted, countedOf, ratesBetween, SINCE_MOUNT } from './stats-rates.js'
import { statsTable, watchHead, watchLine } from './stats-table.js'

const ANSWER_MS = 8_000
const MAX_SECONDS = 86_400
const DEFAULT_SECONDS = '1'
/** The title of the columns is repeated after so many lines. */
const LINES_A_TITLE = 20

export async function run(args: string[]): Promise<number> {
  const { values, positionals } = parse(withSeconds(args), OPTIONS, 'stats', ['MOUNTPOINT'])
  const { watch, json = false, openmetrics = false } = values
  if (openmetrics && (json || watch !== undefined)) {
    throw new UsageError('--openmetrics shows the counts as they are: leave out --json and --watch')
  }
  const seconds = watch === undefined ? undefined : secondsOf(watch)
  const name = positionals[0] as string
  const mount = mountOn(name)
  if (!mount) throw new MountError(`${name}: no image is mounted there by vimgfs`)
  const now = await countsOf(mount)
  if (seconds !== undefined) await follow(mount, now, seconds, json)
  else if (openmetrics) print(openMetrics(now, mount.mountpoint))
  else if (json) print(jsonLine(SINCE_MOUNT, now, 2))
  else print(statsTable(mount.mountpoint, now))
  return 0
}

/** Gives --watch the seconds that follow it, or the default: parseArgs knows no value that may be missing. */
function withSeconds(args: readonly string[]): string[] {
  const end = args.indexOf('--')
  return args.flatMap((word, at) => {
    const isOption = end < 0 || at < end
    const isSeconds = isOption && args[at - 1] === '--watch' && isNumber(word)
    if (isSeconds) return []
    if (!isOption || word !== '--watch') return [word]
    const next = args[at + 1] ?? ''
    return [`--watch=${isNumber(next) ? next : DEFAULT_SECONDS}`]
  })
}

const isNumber = (word: string): boolean => /^[0-9]+(\.[0-9]+)?$/.test(word)

function secondsOf(text: string): number {
  const seconds = Number(text)
  if (isNumber(text) && seconds > 0 && seconds <= MAX_SECONDS) return seconds
  throw new UsageError(`--watch takes seconds, up to ${MAX_SECONDS}, not "${text}"`)
}

/** Prints a line every `seconds` until the mount ends. */
async function follow(mount: MountInfo, first: Counted, seconds: number, json: boolean) {
  let before = first
  for (let lines = 0; ; lines++) {
    await sleep(seconds * 1000)
    let now: Counted
    try {
      now = await countsOf(mount)
    } catch (error) {
      if (mountOn(mount.mountpoint)?.device === mount.device) throw error
      return
    }
    if (!json && lines % LINES_A_TITLE === 0) print(watchHead())
    print(json ? jsonLine(before, now) : watchLine(ratesBetween(before, now)))
    before = now
  }
}

function jsonLine(before: Counted, now: Counted, indent?: number): string {
  const { seconds, perSecond } = ratesBetween(before, now)
  return `${JSON.stringify({ seconds, perSecond, stats: now.stats }, undefined, indent)}\n`
}

async function countsOf(mount: MountInfo): Promise<Counted> {
  const { mountpoint } = mount
  const file = path.join(mountpoint, '.vimgfs', 'stats.json')
  const { code, stdout, stderr } = await runAsOwner(mount, 'cat', [file], ANSWER_MS)
  const at = performance.now() / 1000
  if (code === 0) return countedOf(stdout, at, mountpoint)
  const why =
    code === 'timeout'
      ? `its server has not answered in ${ANSWER_MS / 1000} s`
      : stderr.trim().split(': ').at(-1)
  throw new MountError(`${mountpoint}: its statistics cannot be read: ${why}`)
}
