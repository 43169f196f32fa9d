/** Errors from below over kinds of images: each call of a scenario fails once, in one way or another. */
import { constants } from 'node:os'
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import type { Call, Fault } from '../support/stores.js'
import type { Opener } from '../support/writable.js'
import { ONLY, seedOf } from './cut-suite.js'
import { callsOf, type Outcome, runWithFault } from './faults.js'
import { makeKind, type Recipe } from './kinds.js'
import { type Subject, subjectOf } from './scenario.js'
import { randomSteps, type Step } from './steps.js'

const { EDQUOT, EFBIG, EIO, ENOSPC } = constants.errno

/** Every way, for every call; else each call in a few ways that take turns. */
const IS_LONG = process.env.VIMGFS_TEST_LONG === '1'
const SEED = Number(process.env.VIMGFS_TEST_SEED ?? 1)
const STEPS = 18
/** Calls struck of a kind, in the short form: every second one, and so on, where there are more. */
const STRIKES = 24
/** The same, of kinds whose writers others share. */
export const FEW_STRIKES = 12

export interface Tally {
  runs: number
  struck: number
  readOnly: number
  /** Runs that ended with a clean close and leaks. */
  leakedClosed: number
  /** Of them, those where a file could be made shorter again all the time. */
  leakedNeedlessly: number
}

export function faultSuite(recipes: readonly Recipe[], open: Opener): void {
  for (const recipe of recipes.filter(({ title }) => title.includes(ONLY))) {
    t.test(recipe.title, needs('qemu-img', 'qemu-io'), async t => {
      const subject = subjectOf(await makeKind(recipe, tempFolder(t)), open)
      const tally = strikeRandom(subject)
      t.ok(tally.struck > 0, JSON.stringify(tally))
    })
  }
}

/** Strikes each call of a scenario at random. */
export function strikeRandom(subject: Subject, strikes = STRIKES): Tally {
  return strikeAll(subject, randomSteps(seedOf(subject.title, SEED), STEPS, subject), strikes)
}

/** Strikes each call of a scenario. */
export function strikeAll(subject: Subject, steps: readonly Step[], strikes = STRIKES): Tally {
  const counts = callsOf(subject, steps)
  const tally: Tally = { runs: 0, struck: 0, readOnly: 0, leakedClosed: 0, leakedNeedlessly: 0 }
  const all = (Object.keys(counts) as Call[]).flatMap(call =>
    Array.from({ length: counts[call] }, (_, nth) => ({ call, nth })),
  )
  const stride = IS_LONG ? 1 : Math.max(1, Math.ceil(all.length / strikes))
  all.forEach(({ call, nth }, index) => {
    if (index % stride !== 0) return
    for (const fault of faultsAt(call, nth, index / stride)) {
      count(tally, subject, fault, runWithFault(subject, steps, fault))
    }
  })
  return tally
}

function count(tally: Tally, subject: Subject, fault: Fault, outcome: Outcome): void {
  tally.runs++
  if (outcome.struck) tally.struck++
  if (outcome.turnedReadOnly) tally.readOnly++
  if (!outcome.closed || outcome.leaks <= subject.leaks) return
  tally.leakedClosed++
  if (!fault.persists || !fault.calls.includes('truncate')) tally.leakedNeedlessly++
}

function faultsAt(call: Call, nth: number, turn: number): Fault[] {
  const errnos = call === 'sync' ? [EIO, ENOSPC, EDQUOT] : [EIO, ENOSPC, EDQUOT, EFBIG]
  const parts = [0, 0.4, 1]
  const ways: Fault[] = errnos.flatMap((errno, e) =>
    [false, true].map(persists => ({
      nth,
      errno,
      persists,
      // A file system that is full fails what needs room; a device that breaks, syncs as well.
      calls: persists && errno === EIO ? (['write', 'sync', 'truncate', 'punch'] as const) : [call],
      part: parts[(turn + e) % parts.length] as number,
    })),
  )
  const struck = ways.filter(({ calls }) => calls.length === 1 || call === 'write')
  if (IS_LONG) return struck
  return [struck[turn % struck.length] as Fault, struck[(turn * 3 + 1) % struck.length] as Fault]
}
