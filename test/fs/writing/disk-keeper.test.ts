import t from 'tap'
import { SystemError } from '../../../src/errors.js'
import { DiskKeeper } from '../../../src/fs/writing/disk-keeper.js'
import type { Logger } from '../../../src/log.js'
import { FakeDisk } from '../fake-disk.js'
import { until } from '../../support/until.js'

function keeper() {
  const disk = new FakeDisk()
  const lines: string[] = []
  const log = (level: string) => (detail: { why?: string } | string, message?: string) =>
    void lines.push(
      typeof detail === 'string' ? `${level} ${detail}` : `${level} ${message}: ${detail.why}`,
    )
  const logger = { warn: log('warn'), error: log('error') } as unknown as Logger
  let flushes = 0
  const removed: string[] = []
  return {
    disk,
    lines,
    removed,
    keeper: new DiskKeeper(
      disk,
      () => flushes++,
      () => removed,
      logger,
    ),
    flushes: () => flushes,
  }
}

/** Waits for two flushes of another disk. A timer of the same time that was set before has fired by then. */
async function timersHaveFired(): Promise<void> {
  const { disk, keeper: kept, flushes } = keeper()
  kept.start(0.01)
  await until(() => {
    disk.isDirty = true
    return flushes() >= 2
  })
  kept.close()
}

t.test('flushed when there is something to flush', async t => {
  const { disk, keeper: kept, flushes } = keeper()
  kept.flush()
  t.same(disk.calls, [])
  disk.isDirty = true
  kept.flush()
  kept.flush()
  t.same(disk.calls, ['flush'])
  t.equal(flushes(), 1)
})

t.test('by the clock, and not after the end', async t => {
  const { disk, keeper: kept } = keeper()
  kept.start(0.01)
  disk.isDirty = true
  await until(() => disk.calls.length > 0)
  t.same(disk.calls, ['flush'])
  t.ok(kept.close())
  disk.isDirty = true
  await timersHaveFired()
  kept.flush()
  t.same(disk.calls, ['flush', 'close'])
})

t.test('never, if told so', async t => {
  const { disk, keeper: kept } = keeper()
  kept.start(0)
  disk.isDirty = true
  await timersHaveFired()
  t.same(disk.calls, [])
})

t.test('a file that has been removed is told of once, and written all the same', async t => {
  const { disk, keeper: kept, lines, removed } = keeper()
  removed.push('/x/disk.qcow2')
  for (let i = 0; i < 2; i++) {
    disk.isDirty = true
    kept.flush()
  }
  t.same(disk.calls, ['flush', 'flush'])
  t.same(lines, [
    'error what is written will be gone: /x/disk.qcow2 has been removed, or replaced, while it was mounted',
  ])
})

t.test('a failure is logged once, and tried again', async t => {
  const { disk, keeper: kept, lines } = keeper()
  disk.isDirty = true
  disk.error = new SystemError('write', 28, 'disk')
  for (let i = 0; i < 3; i++) kept.flush()
  t.same(disk.calls, ['flush', 'flush', 'flush'])
  t.same(lines, ['error what was written could not be made durable: write disk: ENOSPC'])
  disk.error = undefined
  kept.flush()
  t.equal(disk.isDirty, false)
  t.ok(kept.close())
})

t.test(
  'a disk that has become read-only is not flushed any more, and does not end well',
  async t => {
    const { disk, keeper: kept, lines } = keeper()
    disk.isDirty = true
    disk.failure = 'a sync failed'
    for (let i = 0; i < 3; i++) kept.flush()
    t.same(disk.calls, [])
    t.same(lines, ['error the disk has become read-only: a sync failed'])
    t.notOk(kept.close())
    t.equal(lines.length, 2)
  },
)

t.test('an image that was cut off and never written does not end well either', async t => {
  const { disk, keeper: kept, lines } = keeper()
  disk.close = () => []
  disk.checkFiles = () => {
    disk.failure = 'cut off'
  }
  t.notOk(kept.close())
  t.same(lines, ['error the disk has become read-only: cut off'])
})

t.test('warnings of closing', async t => {
  const { disk, keeper: kept, lines } = keeper()
  disk.close = () => ['a bitmap was not kept']
  t.ok(kept.close())
  t.same(lines, ['warn a bitmap was not kept'])
})
