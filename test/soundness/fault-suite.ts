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
/**
 * Calls struck of a kind, in the short form: every second one, and so on, where there are more. fault-harness.test.ts finds all
 * flaws made on purpose with as many.
 */
const STRIKES = 12
/** The part of the strikes that syncs get. They are few, and what a writer does after one is hardest to get right. */
const SYNC_PART = 1 / 3

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

/** Strikes calls of a scenario at random. */
export function strikeRandom(subject: Subject): Tally {
  return strikeAll(subject, randomSteps(seedOf(subject.title, SEED), STEPS, subject))
}

/** Strikes each call of a scenario; in the short form, some of them. */
export function strikeAll(subject: Subject, steps: readonly Step[]): Tally {
  const counts = callsOf(subject, steps)
  const tally: Tally = { runs: 0, struck: 0, readOnly: 0, leakedClosed: 0, leakedNeedlessly: 0 }
  const callsOfKind = (call: Call) =>
    Array.from({ length: counts[call] }, (_, nth) => ({ call, nth }))
  const syncs = evenly(callsOfKind('sync'), Math.ceil(STRIKES * SYNC_PART))
  const others = (Object.keys(counts) as Call[]).filter(call => call !== 'sync')
  const chosen = [...evenly(others.flatMap(callsOfKind), STRIKES - syncs.length), ...syncs]
  chosen.forEach(({ call, nth }, turn) => {
    for (const fault of faultsAt(call, nth, turn)) {
      count(tally, subject, fault, runWithFault(subject, steps, fault))
    }
  })
  return tally
}

/** Returns at most so many of the calls, from all over the scenario; in the long form, all. */
function evenly<T>(calls: readonly T[], most: number): readonly T[] {
  const stride = IS_LONG ? 1 : Math.max(1, Math.ceil(calls.length / most))
  return calls.filter((_, index) => index % stride === 0)
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
