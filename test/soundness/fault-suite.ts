/** Errors from below over kinds of images: each call of a scenario fails once, in one way or another. */
import { constants } from 'node:os'
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import type { Call, Fault } from '../support/stores.js'
import type { Opener } from '../support/writable.js'
import { seedOf } from './cut-suite.js'
import { callsOf, type Outcome, runWithFault } from './faults.js'
import { type Kind, makeKind, type Recipe } from './kinds.js'
import { randomSteps, type Step } from './steps.js'

const { EDQUOT, EFBIG, EIO, ENOSPC } = constants.errno

/** Every way, for every call; else each call in a few ways that take turns. */
const IS_LONG = process.env.VIMGFS_TEST_LONG === '1'
const SEED = Number(process.env.VIMGFS_TEST_SEED ?? 1)
const STEPS = 18
/** Calls struck of a kind, in the short form: every second one, and so on, where there are more. */
const STRIKES = 50

export interface Tally {
  runs: number
  struck: number
  readOnly: number
  /** Runs that ended with a clean close and leaks. */
  leakedClosed: number
}

export function faultSuite(recipes: readonly Recipe[], open: Opener): void {
  for (const recipe of recipes) {
    t.test(recipe.title, needs('qemu-img', 'qemu-io'), async t => {
      const kind = await makeKind(recipe, tempFolder(t))
      const tally = strikeAll(kind, randomSteps(seedOf(kind.title, SEED), STEPS, kind), open)
      t.ok(tally.struck > 0, JSON.stringify(tally))
    })
  }
}

/** Strikes each call of a scenario. */
export function strikeAll(kind: Kind, steps: readonly Step[], open: Opener): Tally {
  const counts = callsOf(kind, steps, open)
  const tally: Tally = { runs: 0, struck: 0, readOnly: 0, leakedClosed: 0 }
  const all = (Object.keys(counts) as Call[]).flatMap(call =>
    Array.from({ length: counts[call] }, (_, nth) => ({ call, nth })),
  )
  const stride = IS_LONG ? 1 : Math.max(1, Math.ceil(all.length / STRIKES))
  all.forEach(({ call, nth }, index) => {
    if (index % stride !== 0) return
    for (const fault of faultsAt(call, nth, index / stride)) {
      count(tally, kind, runWithFault(kind, steps, open, fault))
    }
  })
  return tally
}

function count(tally: Tally, kind: Kind, outcome: Outcome): void {
  tally.runs++
  if (outcome.struck) tally.struck++
  if (outcome.turnedReadOnly) tally.readOnly++
  if (outcome.closed && outcome.leaks > kind.leaks) tally.leakedClosed++
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
