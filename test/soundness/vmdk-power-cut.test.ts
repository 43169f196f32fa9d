/** Power cuts over the kinds of VMDK images. */
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import { cutRandom, LONG, ONLY } from './cut-suite.js'
import { openVmdkWritable } from './vmdk-disk.js'
import { makeVmdkKind, VMDK_RECIPES } from './vmdk-kinds.js'
import { qemuChecksVmdk } from './vmdk-qemu.js'
import { vmdkSubject } from './vmdk-scenario.js'

/** Of a kind; the sample is at random already. */
const QEMU_CHECKS = 24 * LONG

for (const recipe of VMDK_RECIPES.filter(({ title }) => title.includes(ONLY))) {
  t.test(recipe.title, needs('qemu-img', 'qemu-io'), async t => {
    const kind = await makeVmdkKind(recipe, tempFolder(t))
    const { judged, sampled } = cutRandom(vmdkSubject(kind, openVmdkWritable))
    const checked = await qemuChecksVmdk(kind, sampled.slice(0, QEMU_CHECKS))
    t.ok(judged > 0, `${judged} cuts, ${checked} of them judged by qemu-img`)
  })
}
