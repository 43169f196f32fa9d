/** Power cuts and faults while images are merged into what they stand on: the image always reads the same. */
import { join } from 'node:path'
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import { cutChange, failChange } from './command-cuts.js'
import { CHAINS, commitChange } from './image-changes.js'

const LONG = process.env.VIMGFS_TEST_LONG === '1'
const ONLY = process.env.VIMGFS_TEST_KIND ?? ''
const SEED = Number(process.env.VIMGFS_TEST_SEED ?? 1)
const SIZE = LONG
  ? { perPlace: 30, places: 1000, faults: 1000 }
  : { perPlace: 1, places: 8, faults: 4 }

for (const [title, kind] of Object.entries(CHAINS)) {
  if (!title.includes(ONLY)) continue
  t.test(title, needs('qemu-img'), async t => {
    const folder = join(tempFolder(t), 'images')
    if (kind.layers.length === 1) return
    for (let base = 1; base < kind.layers.length; base++) {
      const mismatches: string[] = []
      const change = await commitChange(title, folder, kind, base, mismatches)
      const { judged, after } = await cutChange(change, { ...SIZE, seed: SEED })
      t.ok(judged > after && after > 0, `${change.title}: ${judged} cuts, ${after} after it`)
      t.ok(
        mismatches.length < judged / 2,
        `${mismatches.length} cuts between the content ID and the name`,
      )
      t.ok((await failChange(change, SIZE.faults)) > 0, `${change.title}: faults`)
    }
  })
}
