/** Handles that truncate, against a model that knows of each byte who wrote it. */
import t from 'tap'
import type { GapActions } from '../../../src/fs/writing/gap-actions.js'
import { Truncations } from '../../../src/fs/writing/truncations.js'
import { Random } from '../../soundness/steps.js'

const SIZE = 64
const OLD = 0xff

/** A disk of old bytes, and the requests to it. */
function disk() {
  const bytes = Buffer.alloc(SIZE, OLD)
  const calls: string[] = []
  const actions: GapActions = {
    zero(offset, length) {
      calls.push(`zero ${offset} ${length}`)
      bytes.fill(0, Math.min(offset, SIZE), Math.min(offset + length, SIZE))
    },
    dropPages(offset, length, isLocked) {
      calls.push(`${isLocked ? 'drop later' : 'drop'} ${offset} ${length}`)
    },
  }
  return { bytes, calls, actions }
}

t.test('a gap is zeroed once, and later writes into it stay', async t => {
  const { actions, calls } = disk()
  const truncations = new Truncations()
  const handle = truncations.newHandle()
  t.notOk(truncations.isActive)
  t.ok(truncations.truncate(handle, true))
  truncations.beforeWrite(handle, 40, 44, actions)
  truncations.beforeWrite(handle, 8, 12, actions)
  truncations.beforeWrite(handle, 44, 48, actions)
  truncations.beforeWrite(handle, 50, 51, actions)
  t.same(calls, ['zero 0 40', 'zero 48 2'])
  t.equal(truncations.markOf(handle), 51)
  truncations.release(handle)
  t.notOk(truncations.isActive)
  truncations.beforeWrite(handle, 60, 61, actions)
  t.equal(calls.length, 2)
})

t.test('a failure is tried again', async t => {
  const { actions, calls } = disk()
  const truncations = new Truncations()
  const handle = truncations.newHandle()
  truncations.truncate(handle, true)
  const full = {
    ...actions,
    zero: () => {
      throw new Error('full')
    },
  }
  t.throws(() => truncations.beforeWrite(handle, 10, 20, full))
  t.equal(truncations.markOf(handle), 0)
  truncations.failed(handle, truncations.beforeWrite(handle, 10, 20, actions), 20)
  t.ok(truncations.hasFailed(handle))
  truncations.beforeWrite(handle, 30, 31, actions)
  truncations.succeeded(handle)
  t.notOk(truncations.hasFailed(handle))
  t.same(calls, ['zero 0 10', 'zero 10 20'])
})

t.test('a write that fails takes back nothing that was written before', async t => {
  const { actions, calls } = disk()
  const truncations = new Truncations()
  const handle = truncations.newHandle()
  truncations.truncate(handle, true)
  truncations.beforeWrite(handle, 0, 20, actions)
  for (const end of [20, 30]) {
    const back = truncations.beforeWrite(handle, 10, end, actions)
    truncations.failed(handle, back, end)
    t.equal(truncations.markOf(handle), 20, `up to ${end}`)
  }
  truncations.beforeWrite(handle, 40, 41, actions)
  t.same(calls, ['zero 20 20'])
})

t.test('each handle has its own failure', async t => {
  const truncations = new Truncations()
  const [one, two] = [truncations.newHandle(), truncations.newHandle()]
  truncations.failed(one, 0, 1)
  truncations.failed(two, 0, 1)
  t.ok(truncations.hasFailed(one))
  truncations.succeeded(one)
  t.notOk(truncations.hasFailed(one))
  t.ok(truncations.hasFailed(two))
})

t.test('handles are numbered from 1 again after two thousand millions', async t => {
  const truncations = new Truncations()
  const words = new Int32Array(truncations.shared)
  const before = words.slice()
  t.equal(truncations.newHandle(), 1)
  const counter = words.findIndex((word, index) => word !== before[index])
  for (const count of [2 ** 31 - 2, 2 ** 31, 2 ** 31 + 5, 2 ** 32 - 1]) {
    words[counter] = count
    for (let i = 0; i < 3; i++) {
      const handle = truncations.newHandle()
      t.ok(handle > 0 && handle < 2 ** 31, `${count}: ${handle}`)
    }
  }
})

t.test('the last handle that truncated appends', async t => {
  const truncations = new Truncations()
  const [one, two] = [truncations.newHandle(), truncations.newHandle()]
  t.notOk(truncations.isAppending)
  truncations.truncate(one, true, true)
  t.ok(truncations.isAppending)
  truncations.truncate(two, true)
  t.notOk(truncations.isAppending)
  truncations.release(two)
  t.ok(truncations.isAppending)
})

t.test('a clock that is set back makes no thread wait', async t => {
  const truncations = new Truncations()
  const handle = truncations.newHandle()
  truncations.truncate(handle, true)
  truncations.close(handle)
  const { now } = Date
  t.teardown(() => {
    Date.now = now
  })
  // A thread that waited for it would wait for a day.
  Date.now = () => now() - 86_400_000
  t.equal(truncations.lastMark(), 0)
})

t.test('pages are dropped where a program may have read', async t => {
  let told = 0
  const { actions, calls } = disk()
  const truncations = new Truncations(undefined, () => told++)
  const handle = truncations.newHandle()
  truncations.truncate(handle, true)
  truncations.noteRead()
  truncations.noteRead()
  t.equal(told, 1)
  truncations.beforeWrite(handle, 3 * 4096 + 5, 4 * 4096, actions)
  t.same(calls, ['zero 0 12293', 'drop 0 12288', 'drop later 12288 5'])
  truncations.resize(handle, 5 * 4096 + 5, actions)
  t.same(calls.slice(3), ['zero 16384 4101', 'drop 16384 4101'], 'no page is locked')
})

t.test('sizes: the last handle that truncated counts', async t => {
  const { actions } = disk()
  const truncations = new Truncations()
  const [one, two] = [truncations.newHandle(), truncations.newHandle()]
  truncations.truncate(one, true)
  truncations.beforeWrite(one, 0, 30, actions)
  truncations.truncate(two, true)
  truncations.beforeWrite(two, 0, 10, actions)
  t.equal(truncations.lastMark(), 10)
  t.notOk(truncations.isClosing)
  truncations.close(two)
  t.ok(truncations.isClosing)
  t.equal(truncations.lastMark(), 10, 'it is open after a while')
  truncations.beforeWrite(two, 0, 1, actions)
  t.notOk(truncations.isClosing)
  truncations.release(two)
  t.equal(truncations.lastMark(), 30)
})

t.test('too many handles, and more ranges of others than there is room for', async t => {
  const { actions } = disk()
  const truncations = new Truncations()
  const handles = Array.from({ length: 32 }, () => truncations.newHandle())
  for (const handle of handles) t.ok(truncations.truncate(handle, true))
  const late = truncations.newHandle()
  t.notOk(truncations.truncate(late, true))
  truncations.release(handles[0] as number)
  t.ok(truncations.truncate(late, true))
  const other = truncations.newHandle()
  for (let i = 0; i < 3000; i++) truncations.beforeWrite(other, 10 + i * 2, 11 + i * 2, actions)
  t.doesNotThrow(() => truncations.beforeWrite(late, 0, 5, actions))
  t.throws(() => truncations.beforeWrite(late, 9000, 9001, actions), { code: 'EBUSY' })
})

t.test('any handles in any order', async t => {
  const random = new Random(15)
  const pick = (below: number) => random.below(below)
  for (let round = 0; round < 300; round++) {
    const { bytes, actions } = disk()
    const truncations = new Truncations()
    const expected = Buffer.alloc(SIZE, OLD)
    const handles = [0, 1, 2].map(() => ({
      id: truncations.newHandle(),
      mark: -1,
      kept: new Set<number>(),
    }))
    const pass = (handle: (typeof handles)[0], to: number) => {
      for (let at = handle.mark; at < to; at++) if (!handle.kept.has(at)) expected[at] = 0
    }
    for (let step = 1; step < 20; step++) {
      const handle = handles[pick(3)] as (typeof handles)[0]
      const offset = pick(SIZE)
      const what = pick(8)
      if (what === 0) {
        truncations.truncate(handle.id, pick(2) === 0)
        Object.assign(handle, { mark: 0, kept: new Set() })
      } else if (what === 1) {
        if (!truncations.resize(handle.id, offset, actions)) continue
        pass(handle, offset)
        for (const at of handle.kept) if (at < offset) handle.kept.delete(at)
        handle.mark = offset
      } else {
        const end = offset + 1 + pick(SIZE - offset)
        truncations.beforeWrite(handle.id, offset, end, actions)
        bytes.fill(step, offset, end)
        if (handle.mark >= 0) {
          pass(handle, offset)
          handle.mark = Math.max(handle.mark, end)
        }
        expected.fill(step, offset, end)
        for (const other of handles) {
          for (let at = offset; at < end; at++) if (other !== handle) other.kept.add(at)
        }
        for (const { mark, kept } of handles) for (const at of kept) if (at < mark) kept.delete(at)
      }
      if (!bytes.equals(expected)) t.fail(`round ${round}, step ${step}`)
    }
  }
  t.pass()
})

t.test('two files of one disk', async t => {
  const { bytes, actions, calls } = disk()
  const whole = new Truncations()
  const part = whole.at({ file: 17, disk: 16, start: 16, end: 48 })
  const handle = part.newHandle()
  const writer = whole.newHandle()
  part.truncate(handle, true)
  t.equal(part.markOf(handle), 0)
  t.equal(part.lastMark(), 0)
  t.equal(whole.lastMark(), undefined, 'another file shows its own size')
  // Through another file of the disk somebody writes into the gap, and past the end of this one.
  whole.beforeWrite(writer, 20, 24, actions)
  whole.beforeWrite(writer, 44, 60, actions)
  part.beforeWrite(handle, 24, 26, actions)
  t.same(calls, ['zero 0 4', 'zero 8 16'], 'places in the file')
  t.equal(part.markOf(handle), 26)
  part.resize(handle, 32, actions)
  t.same(calls.slice(2), ['zero 26 2'])
  part.failed(handle, 26, 32)
  t.equal(part.markOf(handle), 26)
  t.equal(bytes.length, SIZE)
})
