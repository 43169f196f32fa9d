/** A disk that is full for a while, over kinds of images. */
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import { openWritable } from '../support/writable.js'
import { ONLY } from './cut-suite.js'
import { runFull } from './full-disk.js'
import { makeKind, RECIPES } from './kinds.js'
import { subjectOf } from './scenario.js'
import { Random, randomSteps } from './steps.js'

const RUNS = process.env.VIMGFS_TEST_LONG === '1' ? 400 : 20
const FIRST_SEED = Number(process.env.VIMGFS_TEST_SEED ?? 1)
/** The most tries in all, if the disk was never full in the first ones. */
const MAX_RUNS = RUNS + 44
const STEPS = 40

/** A raw data file needs the same room as the others, and bits of maps are stored at the end. */
const KINDS = RECIPES.filter(({ isHeavy, title }) => !isHeavy && title.includes(ONLY))

for (const recipe of KINDS) {
  t.test(recipe.title, needs('qemu-img', 'qemu-io'), async t => {
    const subject = subjectOf(await makeKind(recipe, tempFolder(t)), openWritable)
    let refused = 0
    let refusedFlushes = 0
    for (let run = 0; run < RUNS || (refused === 0 && run < MAX_RUNS); run++) {
      const seed = FIRST_SEED + run
      const random = new Random(seed)
      const outcome = runFull(subject, randomSteps(seed, STEPS, subject), {
        roomBytes: random.below(Math.min(24, subject.sizeBytes / 16384)) * 4096,
        roomAgainAt: 10 + random.below(20),
      })
      if (outcome.leaks > 0) t.fail(`seed ${seed}: ${outcome.leaks} clusters leak`)
      refused += outcome.refused
      refusedFlushes += outcome.refusedFlushes
    }
    t.ok(refused > 0, `${refused} steps refused, ${refusedFlushes} of them flushes`)
  })
}
