/** Errors from below, and a disk that is full for a while, over kinds of encrypted qcow2 images. */
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import { openWritable } from '../support/writable.js'
import { ENCRYPTED_RECIPES } from './encrypted-kinds.js'
import { strikeRandom } from './fault-suite.js'
import { fillUp } from './full-disk.js'
import { makeKind } from './kinds.js'
import { subjectOf } from './scenario.js'

/** Data files and parents take other roads than images that stand alone. */
const TITLES = [
  'LUKS, snapshots',
  'LUKS, subclusters over a parent',
  'LUKS, data file',
  'LUKS, compressed, 512',
  'AES, it grows under snapshots',
  'AES, data file, subclusters',
  'AES, a size of part of a sector more',
]

for (const recipe of ENCRYPTED_RECIPES.filter(({ title }) => TITLES.includes(title))) {
  t.test(recipe.title, needs('qemu-img', 'qemu-io'), async t => {
    const subject = subjectOf(await makeKind(recipe, tempFolder(t)), openWritable)
    const tally = strikeRandom(subject)
    t.ok(tally.struck > 0, JSON.stringify(tally))
    const { refused } = fillUp(subject)
    t.ok(refused > 0, `${refused} steps refused by a full disk`)
  })
}
