import fs from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import v8 from 'node:v8'
import vm from 'node:vm'
import t from 'tap'
import { mountsChanged } from '../../src/io/libc.js'

v8.setFlagsFromString('--expose-gc')
const collect: () => void = vm.runInNewContext('gc')

t.test('what poll(2) writes to at its end is there until then', async t => {
  const list = fs.openSync('/proc/self/mountinfo', 'r')
  t.teardown(() => fs.closeSync(list))
  const made: WeakRef<Buffer>[] = []
  const { alloc } = Buffer
  Buffer.alloc = size => {
    const buffer = alloc(size)
    made.push(new WeakRef(buffer))
    return buffer
  }
  const changed = mountsChanged(list, 400)
  Buffer.alloc = alloc
  t.equal(made.length, 1)
  // A WeakRef holds what it was made of until this turn is over.
  await sleep(50)
  collect()
  t.ok(made[0]?.deref())
  await changed
  await sleep(50)
  collect()
  t.notOk(made[0]?.deref(), 'and no longer')
})
