/** Errors from below, and a disk that is full for a while, over the kinds of qcow and cow images. */
import t, { type Test } from 'tap'
import { needs, tempFolder } from '../support/run.js'
import { COW_RECIPES, makeCowKind } from './cow-kinds.js'
import { ONLY } from './cut-suite.js'
import { strikeRandom } from './fault-suite.js'
import { fillUp } from './full-disk.js'
import { type ImageKind, imageSubject } from './image-scenario.js'
import { makeQcowKind, QCOW_RECIPES } from './qcow-kinds.js'

function strike(t: Test, kind: ImageKind): void {
  const subject = imageSubject(kind)
  const tally = strikeRandom(subject)
  t.ok(tally.struck > 0, JSON.stringify(tally))
  t.equal(tally.leakedNeedlessly, 0)
  const { refused, refusedFlushes } = fillUp(subject)
  t.ok(refused > 0, `${refused} steps refused by a full disk`)
  t.equal(refusedFlushes, 0, 'what a write was told is written has its room')
}

for (const recipe of QCOW_RECIPES) {
  if (recipe.isHeavy || !recipe.title.includes(ONLY)) continue
  t.test(`qcow, ${recipe.title}`, needs('qemu-img', 'qemu-io'), async t => {
    strike(t, await makeQcowKind(recipe, tempFolder(t)))
  })
}

for (const recipe of COW_RECIPES.filter(({ title }) => title.includes(ONLY))) {
  t.test(`cow, ${recipe.title}`, async t => strike(t, makeCowKind(recipe)))
}
