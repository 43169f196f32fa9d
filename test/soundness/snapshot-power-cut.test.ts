/** Power cuts, faults and full disks while the snapshots of all kinds of qcow2 images change. */
import t from 'tap'
import { qcow2SnapshotWriter } from '../../src/formats/qcow2/snapshot/snapshot-writer.js'
import { needs, tempFolder } from '../support/run.js'
import type { MemoryStore } from '../support/stores.js'
import { ENCRYPTED_RECIPES } from './encrypted-kinds.js'
import { makeKind, RECIPES } from './kinds.js'
import { qemuVerdicts } from './qemu-check.js'
import { changesOf } from './snapshot-changes.js'
import { cutSnapshots, failSnapshots, fillSnapshots } from './snapshot-cuts.js'

const LONG = process.env.VIMGFS_TEST_LONG === '1'
const ONLY = process.env.VIMGFS_TEST_KIND ?? ''
const SEED = Number(process.env.VIMGFS_TEST_SEED ?? 1)
const SIZE = LONG
  ? { perPlace: 30, allUpTo: 8, goesOnEvery: 5, faults: 1000, blocks: 1000, checked: 200 }
  : { perPlace: 2, allUpTo: 3, goesOnEvery: 16, faults: 6, blocks: 3, checked: 4 }

/** Tables are never encrypted, so a few of these are enough. */
const ENCRYPTED = ENCRYPTED_RECIPES.filter(({ title }) => LONG || title.includes('and snapshots'))

const KINDS = [...RECIPES, ...ENCRYPTED].filter(({ title }) => title.includes(ONLY))
for (const [index, recipe] of KINDS.entries()) {
  // A data file has no snapshots.
  if (recipe.dataFile || (recipe.isHeavy && !LONG)) continue
  t.test(recipe.title, needs('qemu-img', 'qemu-io'), async t => {
    const kind = await makeKind(recipe, tempFolder(t))
    const changes = changesOf(kind)
    if (changes.length === 0) {
      const store = kind.image.clone()
      const snapshot = { name: Buffer.from('x'), dateSeconds: 0, dateNanoseconds: 0 }
      const create = () => qcow2SnapshotWriter.create(store, snapshot)
      t.throws(create, { code: 'UNSUPPORTED' }, 'its counts are too narrow')
      t.ok(store.bytes().equals(kind.image.bytes()), 'it is as it was')
    }
    // In the short form each kind gets some changes, and each change some kinds.
    const isChosen = (_: unknown, i: number) => LONG || (i + index) % 3 === 0
    for (const change of changes.filter(isChosen)) {
      const sampled: MemoryStore[] = []
      const options = { ...SIZE, seed: SEED, sample: (file: MemoryStore) => sampled.push(file) }
      const { judged, after } = cutSnapshots(kind, change, options)
      t.ok(
        judged > after && after > 0,
        `${change.title}: ${judged} cuts, ${after} after the switch`,
      )
      const stride = Math.max(1, Math.ceil(sampled.length / SIZE.checked))
      const checked = sampled.filter((_, i) => i % stride === 0).map(file => [file])
      await qemuVerdicts(kind, checked, (_, verdict, said) => {
        const isSound = verdict === 'clean' || (verdict === 'leaks' && kind.leaks > 0)
        if (!isSound) t.fail(`${change.title}: qemu-img check: ${said}`)
      })
      const struck = failSnapshots(kind, change, SIZE.faults)
      t.ok(struck > 0, `${change.title}: ${struck} faults`)
      fillSnapshots(kind, change, SIZE.blocks)
    }
  })
}
