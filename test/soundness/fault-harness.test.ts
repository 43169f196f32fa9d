/** The harness for errors from below: with as few strikes as the suites make, it catches writers that miss an error. */
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import { openWritable } from '../support/writable.js'
import { COW_RECIPES, makeCowKind } from './cow-kinds.js'
import { ENCRYPTED_RECIPES } from './encrypted-kinds.js'
import { type FaultFlaw, withFaultFlaw } from './fault-flaws.js'
import { strikeRandom } from './fault-suite.js'
import { imageSubject } from './image-scenario.js'
import { makeKind, type Recipe, RECIPES } from './kinds.js'
import { makeQcowKind, QCOW_RECIPES } from './qcow-kinds.js'
import { type Subject, subjectOf } from './scenario.js'
import { openVmdkWritable } from './vmdk-disk.js'
import { makeVmdkKind, VMDK_RECIPES } from './vmdk-kinds.js'
import { vmdkSubject } from './vmdk-scenario.js'

function find<R extends { readonly title: string }>(recipes: readonly R[], title: string): R {
  const found = recipes.find(recipe => recipe.title === title)
  if (!found) throw new Error(`no kind ${title}`)
  return found
}

type Make = (folder: string) => Promise<Subject>

const qcow2 =
  (title: string, recipes: readonly Recipe[] = RECIPES): Make =>
  async folder =>
    subjectOf(await makeKind(find(recipes, title), folder), openWritable)
const vmdk =
  (title: string): Make =>
  async folder => {
    const kind = await makeVmdkKind(find(VMDK_RECIPES, title), folder)
    return vmdkSubject(kind, openVmdkWritable, { mayLeak: 'anywhere' })
  }

const SUBJECTS: Record<string, Make> = {
  qcow2: qcow2('snapshots, 512'),
  'qcow2 with a parent': qcow2('a parent, snapshots, 512'),
  'qcow2 with bitmaps': qcow2('bitmaps'),
  LUKS: qcow2('LUKS, snapshots', ENCRYPTED_RECIPES),
  vmdk: vmdk('grains of 8 sectors, over a parent'),
  'split vmdk': vmdk('split'),
  COWD: vmdk('COWD, empty, over a parent'),
  qcow: async folder =>
    imageSubject(await makeQcowKind(find(QCOW_RECIPES, 'a ragged size, over a parent'), folder)),
  cow: async () => imageSubject(makeCowKind(find(COW_RECIPES, 'QEMU, x86-64, empty'))),
}

const FLAWS: readonly FaultFlaw[] = [
  'hides failed writes',
  'hides failed syncs',
  'trusts a second sync',
  'tries failed writes later',
]
for (const [name, make] of Object.entries(SUBJECTS)) {
  t.test(name, needs('qemu-img', 'qemu-io'), async t => {
    const subject = await make(tempFolder(t))
    for (const flaw of FLAWS) {
      t.throws(() => strikeRandom(withFaultFlaw(subject, flaw)), `one that ${flaw} is caught`)
    }
  })
}
