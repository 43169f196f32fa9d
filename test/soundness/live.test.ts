/** Snapshots of a disk that is written: power cuts, errors and full disks at any moment. */
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import type { Call, MemoryStore } from '../support/stores.js'
import { ONLY, seedOf } from './cut-suite.js'
import { ENCRYPTED_RECIPES } from './encrypted-kinds.js'
import { makeKind, RECIPES } from './kinds.js'
import { callsOfLive, cutLive, failLive, fillLive } from './live-cuts.js'
import { liveSteps } from './live-run.js'
import { qemuVerdicts } from './qemu-check.js'

const LONG = process.env.VIMGFS_TEST_LONG === '1'
const SEED = Number(process.env.VIMGFS_TEST_SEED ?? 1)
const SIZE = LONG
  ? { seeds: 20, rounds: 10, cuts: 600, goesOnEvery: 10, strikes: 400, rooms: 30, checked: 100 }
  : { seeds: 1, rounds: 5, cuts: 24, goesOnEvery: 12, strikes: 10, rooms: 2, checked: 3 }

const TITLES = [
  'snapshots, 512',
  'a parent, snapshots, 512',
  'subclusters and snapshots',
  'snapshots, v2',
  'compressed, 512',
  'bitmaps and snapshots, 512',
  'lazy refcounts',
  'refcount blocks grow',
]
const ENCRYPTED = ENCRYPTED_RECIPES.filter(({ title }) => title.includes('and snapshots'))
const EIO = 5
const ENOSPC = 28
const CALLS: readonly Call[] = ['write', 'sync', 'truncate']

const chosen = RECIPES.filter(
  // A data file has no snapshots, and narrow counts have few.
  ({ title, dataFile, isHeavy }) =>
    TITLES.includes(title) || (LONG && !dataFile && !isHeavy && !title.includes('bits')),
)
for (const recipe of [...chosen, ...ENCRYPTED.slice(0, LONG ? undefined : 1)]) {
  if (!recipe.title.includes(ONLY)) continue
  t.test(recipe.title, needs('qemu-img', 'qemu-io'), async t => {
    const kind = await makeKind(recipe, tempFolder(t))
    for (let turn = 0; turn < SIZE.seeds; turn++) {
      const seed = seedOf(recipe.title, SEED + turn)
      const steps = liveSteps(seed, SIZE.rounds, kind)
      const sampled: MemoryStore[] = []
      const sample = (file: MemoryStore) => void sampled.push(file)
      const judged = cutLive(kind, steps, { ...SIZE, seed, sample })
      t.ok(judged > 0, `${judged} cuts`)
      const stride = Math.max(1, Math.ceil(sampled.length / SIZE.checked))
      const checked = sampled.filter((_, i) => i % stride === 0).map(file => [file])
      await qemuVerdicts(kind, checked, (_, verdict, said) => {
        const isSound = verdict === 'clean' || verdict === 'leaks' || kind.isLazy
        if (!isSound) t.fail(`qemu-img check: ${said}`)
      })
      const counts = callsOfLive(kind, steps)
      let readOnly = 0
      for (const call of CALLS) {
        const share = Math.ceil(SIZE.strikes / CALLS.length)
        const stride = Math.max(1, Math.ceil(counts[call] / share))
        for (let nth = turn % stride; nth < counts[call]; nth += stride) {
          const errno = nth % 3 === 0 ? ENOSPC : EIO
          const fault = { nth, calls: [call], errno, persists: false, part: (nth % 4) / 4 }
          if (failLive(kind, steps, fault)) readOnly++
        }
      }
      t.ok(readOnly > 0, `${readOnly} times the disk became read-only`)
      for (let i = 0; i < SIZE.rooms; i++) fillLive(kind, steps, i * 3 * 4096)
    }
  })
}
