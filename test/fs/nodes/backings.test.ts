import t from 'tap'
import { Backings, type Decision } from '../../../src/fs/nodes/backings.js'

const never = (): Decision => {
  throw new Error('it was decided before')
}

t.test('a file keeps the way that was decided first', async t => {
  const backings = new Backings()
  const other = new Backings(backings.shared)
  const passed = { backing: 5, readsSectors: true, isLaidOut: false }
  t.same(
    backings.of(16, () => passed),
    passed,
  )
  t.same(other.of(16, never), passed, 'in another thread')
  t.same(
    backings.of(17, () => ({ reason: -3 })),
    { reason: -3 },
  )
  t.same(other.of(17, never), { reason: -3 })
  t.same(
    backings.of(18, () => ({ backing: 6, readsSectors: false, isLaidOut: false })),
    { backing: 6, readsSectors: false, isLaidOut: false },
  )
  t.same(
    [16, 17, 18, 19, 70_000].map(id => other.isPassed(id)),
    [true, false, true, false, false],
  )
})

t.test('a decision that fails leaves the file undecided', async t => {
  const backings = new Backings()
  const fail = () => {
    throw new Error('bug')
  }
  t.throws(() => backings.of(16, fail), 'bug')
  t.same(
    backings.of(16, () => ({ reason: -1 })),
    { reason: -1 },
  )
})

t.test('files that are given up, or gone', async t => {
  const backings = new Backings()
  for (const id of [16, 17, 18])
    backings.of(id, () => ({ backing: id, readsSectors: true, isLaidOut: false }))
  backings.giveUp(17, -2)
  t.same(backings.of(17, never), { reason: -2 })
  t.same(
    backings.retire(id => id !== 18),
    [18],
  )
  t.notOk(backings.isPassed(18))
  t.same(
    backings.retire(id => id !== 18),
    [],
    'once',
  )
  t.notOk(backings.has(70_000))
})
