/**
 * Several threads read and write one disk at once, over one file, with snapshots and discards: no sector
 * is torn, no read is stale after a write that returned, and the image is sound in the end.
 */
import { join } from 'node:path'
import t from 'tap'
import { attempt, needs, tempFolder } from '../support/run.js'
import { makeKind, type Recipe, RECIPES } from './kinds.js'
import { runThreads } from './thread-suite.js'

const TITLES = [
  'v3, 64 KiB',
  'snapshots',
  'a parent, snapshots, 512',
  'compressed, 64 KiB',
  'subclusters and snapshots',
  'data file',
  'a parent, v2',
  'bitmaps and snapshots, 512',
  'the refcount table grows',
]

for (const title of TITLES) {
  const recipe = RECIPES.find(recipe => recipe.title === title) as Recipe
  t.test(title, needs('qemu-img', 'qemu-io'), async t => {
    const folder = tempFolder(t)
    const kind = await makeKind(recipe, folder)
    const path = join(folder, 'image.qcow2')
    await runThreads(t, path, 'qcow2', kind)
    const { code, stdout } = await attempt('qemu-img', ['check', '-f', 'qcow2', path], {
      cwd: folder,
    })
    t.equal(code, 0, stdout)
  })
}
