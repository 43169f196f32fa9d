/** Errors from below, over the kinds of VMDK images. */
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import { strikeRandom } from './fault-suite.js'
import { openVmdkWritable } from './vmdk-disk.js'
import { makeVmdkKind, VMDK_RECIPES } from './vmdk-kinds.js'
import { vmdkSubject } from './vmdk-scenario.js'
import { ONLY } from './cut-suite.js'

for (const recipe of VMDK_RECIPES) {
  if (recipe.isHeavy || !recipe.title.includes(ONLY)) continue
  t.test(recipe.title, needs('qemu-img', 'qemu-io'), async t => {
    const kind = await makeVmdkKind(recipe, tempFolder(t))
    const tally = strikeRandom(vmdkSubject(kind, openVmdkWritable, { mayLeak: 'anywhere' }))
    t.ok(tally.struck > 0, JSON.stringify(tally))
    t.equal(tally.leakedNeedlessly, 0)
  })
}
