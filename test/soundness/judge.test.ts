/** The judge of these tests against `qemu-img check`, on images that are damaged here and there. */
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import type { MemoryStore } from '../support/stores.js'
import { judge } from './judge.js'
import { type Kind, makeKind, RECIPES } from './kinds.js'
import { qemuVerdicts } from './qemu-check.js'
import { Random } from './steps.js'

const IMAGES = process.env.VIMGFS_TEST_LONG === '1' ? 2000 : 80
const TITLES = ['snapshots', 'compressed, 512', 'subclusters and snapshots', 'bitmaps']

/** Flips a bit of a count, of an L1 entry or of an L2 entry. */
function damaged({ image }: Kind, random: Random): MemoryStore {
  const bytes = image.bytes()
  const mask = 0x00fffffffffffe00n
  const u64 = (at: number) => Number(bytes.readBigUInt64BE(at) & mask)
  const l1At = u64(40)
  const block = u64(u64(48))
  const cluster = 2 ** bytes.readUInt32BE(20)
  const tables = Array.from({ length: bytes.readUInt32BE(36) }, (_, i) => l1At + i * 8)
  const named = tables.filter(at => u64(at) !== 0)
  const count = block + 2 * random.below(image.sizeBytes / cluster) + 1
  const l1Entry = random.pick(named)
  const l2Entry = u64(random.pick(named)) + 8 * random.below(cluster / 8)
  const [at, bit] = random.pick([
    [count, random.below(2)],
    [l1Entry, 7],
    [l2Entry, random.pick([6, 7])],
    [l2Entry + 7 - Math.floor(Math.log2(cluster) / 8), random.below(8)],
  ]) as [number, number]
  const copy = image.clone()
  copy.write(Buffer.of((bytes[at] as number) ^ (1 << bit)), 0, 1, at)
  return copy
}

for (const title of TITLES) {
  t.test(title, needs('qemu-img', 'qemu-io'), async t => {
    const recipe = RECIPES.find(recipe => recipe.title === title)
    if (!recipe) throw new Error(`no kind ${title}`)
    const kind = await makeKind(recipe, tempFolder(t))
    const random = new Random(7)
    const images = Array.from({ length: IMAGES }, () => [damaged(kind, random)] as const)
    const seen = { clean: 0, leaks: 0, corrupt: 0 }
    await qemuVerdicts(kind, images, (index, verdict, said) => {
      seen[verdict]++
      const { corruptions, leaks, leaksBehind } = judge(images[index]?.[0] as MemoryStore)
      // It is stricter where two uses of a cluster are counted as two.
      const real = corruptions.filter(what => !what.includes(' is both '))
      const ours = real.length > 0 ? 'corrupt' : leaks > leaksBehind ? 'leaks' : 'clean'
      if (ours === verdict || (verdict !== 'corrupt' && corruptions.length > 0)) return
      t.fail(`image ${index}: ${ours}, not ${verdict}: ${corruptions.join('; ')} and ${said}`)
    })
    t.ok(seen.corrupt > 5 && seen.leaks + seen.clean > 5, JSON.stringify(seen))
  })
}
