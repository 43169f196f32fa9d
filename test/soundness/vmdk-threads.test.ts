/**
 * Several threads read and write one VMDK disk at once, over its files: no sector is torn, no read is stale
 * after a write that returned, and the image is sound in the end.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'
import { runThreads } from './thread-suite.js'
import { judgeVmdk, leaksOf } from './vmdk-judge.js'
import { makeVmdkKind, type VmdkRecipe, VMDK_RECIPES } from './vmdk-kinds.js'

const TITLES = [
  'by QEMU, over a parent',
  'by QEMU, over a parent, zeroed grains',
  'grains of a sector',
  'tables that are not there yet',
  'one directory',
  'flat, by QEMU',
  'COWD, grains of a sector',
  'COWD, grains of 16 sectors, unclean',
]

for (const title of TITLES) {
  const recipe = VMDK_RECIPES.find(recipe => recipe.title === title) as VmdkRecipe
  t.test(title, needs('qemu-img', 'qemu-io'), async t => {
    const folder = tempFolder(t)
    const { files, disk, verdict } = await makeVmdkKind(recipe, folder)
    const places = files.map(({ path }) => join(folder, path))
    files.forEach((file, i) => {
      writeFileSync(places[i] as string, file.bytes())
    })
    await runThreads(t, places[0] as string, 'vmdk', { disk, snapshots: [] })

    const after = files.map(({ path }) => new MemoryStore(path, readFileSync(join(folder, path))))
    const { corruptions, extents, isUnclean, cid } = judgeVmdk(after)
    t.same(corruptions, [])
    t.equal(isUnclean, false)
    t.not(cid, verdict.cid)
    extents.forEach((extent, i) => {
      t.same(extent.disagreements, [])
      t.same(leaksOf(extent, verdict.extents[i]), { between: 0, behind: 0 })
    })
  })
}
