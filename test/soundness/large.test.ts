/**
 * Steps that change more tables, and free more clusters, than memory holds between two flushes: then a
 * step flushes on its way, and the order of things must hold there, too.
 */
import t from 'tap'
import { needs, tempFolder } from '../support/run.js'
import { openWritable } from '../support/writable.js'
import { makeKind, type Recipe } from './kinds.js'
import { cutPower } from './power-cut.js'
import { subjectOf } from './scenario.js'
import { Random, type Step } from './steps.js'

const M = 2 ** 20
const SIZE = 36 * M
/** What one L2 table maps. */
const TABLE = 32 * 1024
const CUTS = process.env.VIMGFS_TEST_LONG === '1' ? 300 : 8

const snapshot = (image: string) => ['snapshot', '-c', 'one', image]

/** One sector under each table, in no order. */
function scattered(seed: number): Step[] {
  const random = new Random(seed)
  const tables = Array.from({ length: SIZE / TABLE }, (_, i) => i)
  for (let i = tables.length - 1; i > 0; i--) {
    const j = random.below(i + 1)
    ;[tables[i], tables[j]] = [tables[j] as number, tables[i] as number]
  }
  return tables.map(table => ({
    kind: 'write',
    offset: table * TABLE + 512 * random.below(TABLE / 512),
    length: 512,
    seed: table,
  }))
}

const CASES: { title: string; made: Recipe['steps']; steps: Step[] }[] = [
  { title: 'a sector under each table', made: [], steps: scattered(1) },
  {
    title: 'a sector under each table, which a snapshot has, too',
    made: [{ io: [`write -P 1 0 ${SIZE}`] }, { img: snapshot }],
    steps: scattered(2),
  },
  {
    title: 'all of it at once',
    made: [],
    steps: [{ kind: 'write', offset: 700, length: SIZE - 1000, seed: 3 }],
  },
  {
    title: 'every other piece discarded, then all the rest',
    made: [{ io: [`write -P 1 0 ${SIZE}`] }],
    steps: [
      ...Array.from({ length: SIZE / 8192 }, (_, i): Step => {
        return { kind: 'zero', offset: i * 8192, length: 4096 }
      }),
      { kind: 'zero', offset: 0, length: SIZE },
      { kind: 'write', offset: 5 * M, length: 9 * M, seed: 4 },
    ],
  },
]

for (const { title, made, steps } of CASES) {
  t.test(title, needs('qemu-img', 'qemu-io'), async t => {
    const recipe: Recipe = { title, sizeK: SIZE / 1024, cluster: 512, steps: made, isHeavy: true }
    const subject = subjectOf(await makeKind(recipe, tempFolder(t)), openWritable)
    const options = { seed: 1, cuts: CUTS, allUpTo: 0, recoverEvery: 6 }
    t.ok(cutPower(subject, steps, options) > 0)
  })
}
