/** Power cuts over the kinds of qcow and cow images. */
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import type { MemoryStore } from '../support/stores.js'
import { COW_RECIPES, makeCowKind } from './cow-kinds.js'
import { BRIEF, cutRandom, ONLY } from './cut-suite.js'
import { SECRET } from './encrypted-kinds.js'
import { readQcow } from './image-disk.js'
import { filesOf, type ImageKind, imageSubject } from './image-scenario.js'
import { cutPower } from './power-cut.js'
import { makeQcowKind, QCOW_RECIPES, type QcowRecipe } from './qcow-kinds.js'
import { type QemuReading, qemuReadsAlike } from './qemu-check.js'
import type { Step } from './steps.js'

const K = 1024

const asQemuReads = (kind: ImageKind): QemuReading => ({
  title: kind.title,
  folder: kind.folder as string,
  names: ['read.qcow'],
  image: kind.encryption
    ? `${SECRET} --image-opts driver=qcow,encrypt.key-secret=key,file.filename=read.qcow`
    : '-f qcow read.qcow',
  disk: ([file]) => readQcow(filesOf(kind, file as MemoryStore)),
})

for (const recipe of QCOW_RECIPES.filter(({ title }) => title.includes(ONLY))) {
  t.test(`qcow, ${recipe.title}`, needs('qemu-img', 'qemu-io'), async t => {
    const kind = await makeQcowKind(recipe, tempFolder(t))
    const { judged, sampled } = cutRandom(imageSubject(kind), BRIEF)
    const read = await qemuReadsAlike(asQemuReads(kind), sampled)
    t.ok(judged > 0, `${judged} cuts, ${read} of them read by QEMU`)
  })
}

for (const recipe of COW_RECIPES.filter(({ title }) => title.includes(ONLY))) {
  t.test(`cow, ${recipe.title}`, async t => {
    const { judged } = cutRandom(imageSubject(makeCowKind(recipe)), BRIEF)
    t.ok(judged > 0, `${judged} cuts`)
  })
}

const SHARED_BLOCK: QcowRecipe = {
  title: 'the L1 table in a block of the file that has clusters, too',
  clusterBits: 9,
  l2Bits: 6,
  sizeBytes: 300 * K,
  data: [[0, 12]],
  isL1Last: true,
}

/** Tables come and clusters change in turns: a write to one leaves the others as they are. */
const TURNS = Array.from({ length: 9 }, (_, i): Step[] => {
  const table: Step = { kind: 'write', offset: (i + 1) * 64 * 512, length: 700, seed: i }
  const clusters: Step = { kind: 'write', offset: i * 512, length: 4 * 512, seed: 50 + i }
  const both = i % 2 === 0 ? [table, clusters] : [clusters, table]
  return i % 3 === 2 ? [...both, { kind: 'flush' }, clusters] : both
}).flat()

t.test(`qcow, ${SHARED_BLOCK.title}`, async t => {
  const subject = imageSubject(await makeQcowKind(SHARED_BLOCK, tempFolder(t)))
  t.ok(cutPower(subject, TURNS, { ...BRIEF, seed: 1, recoverEvery: 12 }) > 0)
})
