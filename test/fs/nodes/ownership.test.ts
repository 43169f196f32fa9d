/** Owners and modes of files that can be written: each file has its own. */
import t from 'tap'
import { Ownership } from '../../../src/fs/nodes/ownership.js'

const FIRST = { mode: 0o600, uid: 1, gid: 2 }

t.test('each file has its own', async t => {
  const disk = new Ownership()
  const one = disk.of(17)
  const other = new Ownership(disk.shared, 18)
  t.ok(one.set({ ...FIRST, mode: 0o644 }))
  t.ok(one.set({ ...FIRST, mode: 0o640 }))
  t.ok(other.set({ ...FIRST, uid: 7 }))
  t.same(disk.of(17).current(FIRST), { ...FIRST, mode: 0o640 })
  t.same(disk.of(18).current(FIRST), { ...FIRST, uid: 7 })
  t.same(disk.current(FIRST), FIRST)
})

t.test('those of too many files', async t => {
  const ownership = new Ownership()
  let count = 0
  while (ownership.of(100 + count).set(FIRST)) count++
  t.equal(count, 1024)
  t.ok(ownership.of(100).set({ ...FIRST, mode: 0 }))
  t.equal(ownership.of(100).current(FIRST).mode, 0)
})
