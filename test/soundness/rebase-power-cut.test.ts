/** Power cuts and faults while images get other backing files: the image always reads the same. */
import { join } from 'node:path'
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import { cutChange, failChange } from './command-cuts.js'
import { CHAINS, type RebaseKind, rebaseChange } from './image-changes.js'

const LONG = process.env.VIMGFS_TEST_LONG === '1'
const ONLY = process.env.VIMGFS_TEST_KIND ?? ''
const SEED = Number(process.env.VIMGFS_TEST_SEED ?? 1)
const SIZE = LONG
  ? { perPlace: 30, places: 1000, faults: 1000 }
  : { perPlace: 1, places: 8, faults: 4 }

/** As long as a name may be that a sector does not hold. */
const LONG_NAME = `${'./'.repeat(450)}other`

for (const [index, [title, kind]] of Object.entries(CHAINS).entries()) {
  if (!title.includes(ONLY)) continue
  t.test(title, needs('qemu-img'), async t => {
    const folder = join(tempFolder(t), 'images')
    const format = kind.layers[0]?.format === 'vmdk' ? 'vmdk' : 'qcow2'
    const isTiny = kind.layers[0]?.options?.cluster_size === 512
    const name = isTiny ? 'other' : LONG_NAME
    const rebases: RebaseKind[] = [
      {},
      { other: { format } },
      { other: { format }, isUnsafe: true, name },
    ]
    // In the short form each kind gets two of them.
    const isChosen = (_: unknown, i: number) => LONG || (i + index) % 3 > 0
    for (const rebase of rebases.filter(isChosen)) {
      if (kind.layers.length === 1 && (!rebase.other || rebase.isUnsafe)) continue
      const change = await rebaseChange(title, folder, kind, rebase)
      const { judged, after } = await cutChange(change, { ...SIZE, seed: SEED })
      t.ok(judged > after && after > 0, `${change.title}: ${judged} cuts, ${after} after it`)
      t.ok((await failChange(change, SIZE.faults)) > 0, `${change.title}: faults`)
    }
  })
}
