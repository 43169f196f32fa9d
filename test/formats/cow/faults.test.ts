/** Errors from below, and disks that are full for a while, over the layouts of cow images. */
import t from 'tap'
import { ONLY } from '../../soundness/cut-suite.js'
import { strikeRandom } from '../../soundness/fault-suite.js'
import { runFull } from '../../soundness/full-disk.js'
import { Random, randomSteps } from '../../soundness/steps.js'
import { FullDiskStore, MemoryStore } from '../../support/stores.js'
import { openCow, SECTOR, storeOf } from './images.js'
import { cowSubject, KINDS } from './subjects.js'

const RUNS = process.env.VIMGFS_TEST_LONG === '1' ? 400 : 8
const FIRST_SEED = Number(process.env.VIMGFS_TEST_SEED ?? 1)
const STEPS = 40

for (const kind of KINDS.filter(({ title }) => title.includes(ONLY))) {
  const subject = cowSubject(kind)

  if (!subject.isHeavy) {
    t.test(`errors: ${kind.title}`, t => {
      const tally = strikeRandom(subject)
      t.ok(tally.struck > 0, JSON.stringify(tally))
      t.end()
    })
  }

  t.test(`a full disk: ${kind.title}`, t => {
    let refused = 0
    for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) {
      const random = new Random(seed)
      const outcome = runFull(subject, randomSteps(seed, STEPS, subject), {
        roomBytes: random.below(12) * 4096,
        roomAgainAt: 10 + random.below(20),
      })
      if (outcome.leaks > 0) t.fail(`seed ${seed}: ${outcome.leaks} sectors leak`)
      if (outcome.refusedFlushes > 0) t.fail(`seed ${seed}: a flush had no room`)
      refused += outcome.refused
    }
    t.ok(refused > 0, `${refused} steps refused`)
    t.end()
  })
}

t.test('an acknowledged write has its bits, too', t => {
  // The bitmap of a new image is a hole of the file, and each write needs another slice of it.
  const { store: image } = storeOf({ layout: 'qemu-x86-64', sizeBytes: 2 ** 30 })
  const store = new FullDiskStore(image)
  store.limitBytes = store.usedBytes + 20 * 4096
  const { disk } = openCow(store)
  const step = 4096 * 8 * SECTOR
  let written = 0
  t.throws(
    () => {
      for (;;) {
        disk.write(Buffer.alloc(SECTOR, 9), 0, SECTOR, written * step)
        written++
      }
    },
    { code: 'ENOSPC' },
  )
  t.ok(written >= 9, `${written} writes`)
  disk.flush()
  disk.close()
  const again = openCow(new MemoryStore('disk.cow', image.bytes()))
  for (let i = 0; i < written; i++) {
    t.ok(again.read(i * step, SECTOR).equals(Buffer.alloc(SECTOR, 9)), `write ${i}`)
  }
  t.end()
})
