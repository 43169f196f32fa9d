/**
 * Several threads read and write one encrypted disk at once, in pieces that share sectors: none is lost, none
 * is torn, no read is stale after a write that returned, and the image is sound in the end.
 */
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { attempt, needs, tempFolder } from '../support/run.js'
import { ENCRYPTED_RECIPES } from './encrypted-kinds.js'
import { makeKind, type Recipe } from './kinds.js'
import { runThreads } from './thread-suite.js'

const TITLES = [
  'LUKS, snapshots',
  'LUKS, subclusters over a parent',
  'LUKS, data file',
  'AES, snapshots, 512',
  'AES, data file, subclusters',
]

for (const title of TITLES) {
  const recipe = ENCRYPTED_RECIPES.find(recipe => recipe.title === title) as Recipe
  t.test(title, needs('qemu-img', 'qemu-io'), async t => {
    const folder = tempFolder(t)
    const kind = await makeKind(recipe, folder)
    const path = join(folder, 'image.qcow2')
    writeFileSync(path, kind.image.bytes())
    if (kind.data) writeFileSync(join(folder, 'data.raw'), kind.data.bytes())
    await runThreads(t, path, 'qcow2', kind)
    const { qemuOptions } = kind.encryption ?? {}
    if (qemuOptions !== undefined) return
    const { code, stdout } = await attempt('qemu-img', ['check', '-f', 'qcow2', path], {
      cwd: folder,
    })
    t.equal(code, 0, stdout)
  })
}
