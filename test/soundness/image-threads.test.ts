/**
 * Several threads read and write one qcow or cow disk at once, over its file: no sector is torn, no read is stale
 * after a write that returned, and the image is sound in the end.
 */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'
import { COW_RECIPES, makeCowKind, PARENT } from './cow-kinds.js'
import type { ImageKind } from './image-scenario.js'
import { makeQcowKind, QCOW_RECIPES } from './qcow-kinds.js'
import { runThreads } from './thread-suite.js'

const QCOW_TITLES = ['by QEMU, over a parent', 'AES, clusters of 64 KiB, over a parent']
/** Neighbours share a byte of the bitmap. */
const COW_TITLES = ['QEMU, i386, alone', 'UML 3, the bitmap a hole, over a parent']

for (const recipe of QCOW_RECIPES.filter(({ title }) => QCOW_TITLES.includes(title))) {
  t.test(recipe.title, needs('qemu-img', 'qemu-io'), async t => {
    const folder = tempFolder(t)
    await threads(t, await makeQcowKind(recipe, folder), folder)
  })
}

for (const recipe of COW_RECIPES.filter(({ title }) => COW_TITLES.includes(title))) {
  t.test(recipe.title, t => threads(t, makeCowKind(recipe), tempFolder(t)))
}

async function threads(t: Parameters<typeof runThreads>[0], kind: ImageKind, folder: string) {
  const { file, disk, encryption, verdict, format, parent } = kind
  const path = join(folder, file.path)
  writeFileSync(path, file.bytes())
  if (parent) writeFileSync(join(folder, PARENT), parent)
  await runThreads(t, path, format.name, { disk, snapshots: [], encryption })
  const after = format.judge(new MemoryStore(file.path, readFileSync(path)), kind)
  t.same(after.corruptions, [])
  for (const [name, bytes] of verdict.fixed) t.same(after.fixed.get(name), bytes, name)
}
