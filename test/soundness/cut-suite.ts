/** Cuts the power in random scenarios over kinds of images; one test a kind. */
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import type { MemoryStore } from '../support/stores.js'
import { openWritable } from '../support/writable.js'
import { makeKind, type Recipe } from './kinds.js'
import { type CutOptions, cutPower } from './power-cut.js'
import { qemuChecks, qemuReads } from './qemu-check.js'
import { type Subject, subjectOf } from './scenario.js'
import { Random, randomSteps } from './steps.js'

/** The long form does so many times as much. */
export const LONG = process.env.VIMGFS_TEST_LONG === '1' ? 30 : 1

/** Other scenarios, to look further. */
const FIRST_SEED = Number(process.env.VIMGFS_TEST_SEED ?? 1)

/** Kinds have scenarios of their own: many would not differ in anything else. */
export const seedOf = (title: string, seed: number): number =>
  [...title].reduce((sum, char) => (sum * 31 + char.charCodeAt(0)) % 9973, 7) * 1000 + seed

/** Of a kind, in the long form. */
const FULL = {
  scenarios: 3,
  steps: 24,
  cuts: 220,
  allUpTo: 5,
  single: 16,
  recoverEvery: 12,
  qemuChecks: 30,
}
/** In the short form. The harness tests cut flawed writers by the same figures: they find all flaws made on purpose. */
const SHORT = {
  ...FULL,
  ...{ scenarios: 2, cuts: 30, allUpTo: 2, single: 6, recoverEvery: 8, qemuChecks: 16 },
}
const USUAL = LONG > 1 ? FULL : SHORT
/** Of kinds whose writers others share. */
export const BRIEF = { ...USUAL, qemuChecks: 12 }
const HEAVY = {
  ...USUAL,
  ...(LONG > 1 ? { steps: 12, cuts: 40, allUpTo: 3 } : { steps: 12, cuts: 20, single: 4 }),
}

/** Only kinds whose names have this in them. */
export const ONLY = process.env.VIMGFS_TEST_KIND ?? ''

export function cutSuite(recipes: readonly Recipe[], usual = USUAL): void {
  for (const recipe of recipes.filter(({ title }) => title.includes(ONLY))) {
    t.test(recipe.title, needs('qemu-img', 'qemu-io'), async t => {
      const kind = await makeKind(recipe, tempFolder(t))
      const { judged, sampled } = cutRandom(subjectOf(kind, openWritable), usual)
      const checked = await qemuChecks(kind, sampled)
      const read = await qemuReads(kind, sampled)
      t.ok(judged > 0, `${judged} cuts, ${checked} of them judged by qemu-img, ${read} read`)
    })
  }
}

/** Random scenarios, and a sample of what their cuts left. */
export function cutRandom(
  subject: Subject,
  usual = USUAL,
): {
  judged: number
  sampled: (readonly MemoryStore[])[]
} {
  const { qemuChecks } = subject.isHeavy ? HEAVY : usual
  const sample = new Sample(qemuChecks * LONG)
  const judged = cutScenarios(subject, { sample: files => sample.offer(files) }, usual)
  return { judged, sampled: sample.kept }
}

/** Returns how many cuts were judged. Throws for the first wrong one. */
export function cutScenarios(
  subject: Subject,
  more: Pick<CutOptions, 'sample' | 'isExpected'> = {},
  usual = USUAL,
): number {
  const { scenarios, steps, qemuChecks: _, ...options } = subject.isHeavy ? HEAVY : usual
  let judged = 0
  for (let i = 0; i < scenarios * LONG; i++) {
    const seed = seedOf(subject.title, FIRST_SEED + i)
    judged += cutPower(subject, randomSteps(seed, steps, subject), { seed, ...options, ...more })
  }
  return judged
}

/** So many of all that is offered, each as likely as any other. */
class Sample {
  readonly kept: (readonly MemoryStore[])[] = []
  private readonly random = new Random(FIRST_SEED)
  private offered = 0

  constructor(private readonly size: number) {}

  offer(files: readonly MemoryStore[]): void {
    const place = this.random.below(++this.offered)
    if (this.kept.length < this.size) this.kept.push(files)
    else if (place < this.size) this.kept[place] = files
  }
}
