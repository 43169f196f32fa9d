/** Cuts the power in random scenarios over kinds of images; one test a kind. */
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import type { MemoryStore } from '../support/stores.js'
import { openWritable } from '../support/writable.js'
import { makeKind, type Recipe } from './kinds.js'
import { cutPower } from './power-cut.js'
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

/** Of a kind, in the short form. */
const USUAL = { scenarios: 2, steps: 24, cuts: 180, allUpTo: 5, qemuChecks: 30 }
/** Of kinds whose writers others share. */
export const BRIEF = { scenarios: 2, steps: 24, cuts: 80, allUpTo: 4, qemuChecks: 12 }
const HEAVY = { scenarios: 2, steps: 12, cuts: 40, allUpTo: 3, qemuChecks: 16 }

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
  const { scenarios, steps, cuts, allUpTo, qemuChecks } = subject.isHeavy ? HEAVY : usual
  const sample = new Sample(qemuChecks * LONG)
  let judged = 0
  for (let i = 0; i < scenarios * LONG; i++) {
    const seed = seedOf(subject.title, FIRST_SEED + i)
    judged += cutPower(subject, randomSteps(seed, steps, subject), {
      seed,
      cuts,
      allUpTo,
      recoverEvery: 12,
      sample: files => sample.offer(files),
    })
  }
  return { judged, sampled: sample.kept }
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
