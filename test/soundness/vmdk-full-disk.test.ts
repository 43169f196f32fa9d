/** A disk that is full for a while, over the kinds of VMDK images. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { needs, run, tempFolder } from '../support/run.js'
import { FullDiskStore, MemoryStore } from '../support/stores.js'
import { runFull } from './full-disk.js'
import { Random, randomSteps } from './steps.js'
import { openVmdkWritable } from './vmdk-disk.js'
import { makeVmdkKind, VMDK_RECIPES } from './vmdk-kinds.js'
import { vmdkSubject } from './vmdk-scenario.js'

const RUNS = process.env.VIMGFS_TEST_LONG === '1' ? 400 : 20
const FIRST_SEED = Number(process.env.VIMGFS_TEST_SEED ?? 1)
/** The most tries in all, if the disk was never full in the first ones. */
const MAX_RUNS = RUNS + 44
const STEPS = 40

/** Flat extents have all their room, but where they are holes. */
const KINDS = VMDK_RECIPES.filter(({ title, isHeavy }) => title !== 'flat' && !isHeavy)

for (const recipe of KINDS) {
  t.test(recipe.title, needs('qemu-img', 'qemu-io'), async t => {
    const subject = vmdkSubject(await makeVmdkKind(recipe, tempFolder(t)), openVmdkWritable)
    let refused = 0
    for (let run = 0; run < RUNS || (refused === 0 && run < MAX_RUNS); run++) {
      const seed = FIRST_SEED + run
      const random = new Random(seed)
      const outcome = runFull(subject, randomSteps(seed, STEPS, subject), {
        roomBytes: random.below(Math.min(24, subject.sizeBytes / 16384)) * 4096,
        roomAgainAt: 10 + random.below(20),
      })
      if (outcome.leaks > 0) t.fail(`seed ${seed}: ${outcome.leaks} grains leak`)
      refused += outcome.refused
    }
    t.ok(refused > 0, `${refused} steps refused`)
  })
}

t.test('an acknowledged write has its tables, too', needs('qemu-img'), async t => {
  const file = join(tempFolder(t), 'disk.vmdk')
  // The tables of a new image are holes of the file, and each write needs another one.
  await run('qemu-img', ['create', '-q', '-f', 'vmdk', file, '2G'])
  const image = new MemoryStore(file, readFileSync(file))
  const store = new FullDiskStore(image)
  const [grain, coverage] = [65536, 512 * 65536]
  store.limitBytes = store.usedBytes + 20 * grain
  const { disk } = openVmdkWritable({ stores: [store] })
  let written = 0
  const write = () => disk.write(Buffer.alloc(grain, 9), 0, grain, written * coverage)
  t.throws(
    () => {
      for (;;) {
        write()
        written++
      }
    },
    { code: 'ENOSPC' },
  )
  t.ok(written > 10, `${written} writes`)
  disk.flush()
  disk.close()
  const again = openVmdkWritable({ stores: [image] })
  for (let i = 0; i < written; i++) {
    t.ok(again.read(i * coverage, grain).equals(Buffer.alloc(grain, 9)), `write ${i}`)
  }
})
