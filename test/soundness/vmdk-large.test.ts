/**
 * Steps that change more grain tables than memory holds between two flushes: then a step flushes on its
 * way, and the order of things must hold there, too.
 */
import t from 'tap'
import { tempFolder } from '../support/run.js'
import { cutPower } from './power-cut.js'
import { Random, type Step } from './steps.js'
import { openVmdkWritable } from './vmdk-disk.js'
import { hostedRecipe, makeVmdkKind } from './vmdk-kinds.js'
import { vmdkSubject } from './vmdk-scenario.js'

const SECTOR = 512
/** Entries of a table, whose grains have a sector. */
const ENTRIES = 128
const TABLES = 600
const SIZE = TABLES * ENTRIES * SECTOR
const CUTS = process.env.VIMGFS_TEST_LONG === '1' ? 300 : 8

/** One sector under each table, in no order. */
function scattered(seed: number): Step[] {
  const random = new Random(seed)
  const tables = Array.from({ length: TABLES }, (_, i) => i)
  for (let i = tables.length - 1; i > 0; i--) {
    const j = random.below(i + 1)
    ;[tables[i], tables[j]] = [tables[j] as number, tables[i] as number]
  }
  return tables.map(table => ({
    kind: 'write',
    offset: (table * ENTRIES + random.below(ENTRIES)) * SECTOR,
    length: SECTOR,
    seed: table,
  }))
}

const CASES: { title: string; leavesOutTables: boolean; steps: Step[] }[] = [
  { title: 'a sector under each table', leavesOutTables: false, steps: scattered(1) },
  { title: 'a sector under tables that are made', leavesOutTables: true, steps: scattered(2) },
  {
    title: 'all of it at once',
    leavesOutTables: true,
    steps: [{ kind: 'write', offset: 700, length: SIZE - 1000, seed: 3 }],
  },
]

for (const { title, leavesOutTables, steps } of CASES) {
  t.test(title, async t => {
    const shape = { capacitySectors: SIZE / SECTOR, grainSectors: 1, tableEntries: ENTRIES }
    const recipe = { ...hostedRecipe({ ...shape, leavesOutTables }), title }
    const subject = vmdkSubject(await makeVmdkKind(recipe, tempFolder(t)), openVmdkWritable)
    t.ok(cutPower(subject, steps, { seed: 1, cuts: CUTS, allUpTo: 0, recoverEvery: 6 }) > 0)
  })
}
