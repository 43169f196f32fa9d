/** Requests that wait while all workers are busy make another worker start; nothing else does. */
import t from 'tap'
import {
  Activity,
  createActivityMemory,
  servingWorkers,
  WorkerActivity,
} from '../../../src/fs/workers/activity.js'
import { Crowding } from '../../../src/fs/workers/crowding.js'
import { createGateMemory, Gate, GatePass } from '../../../src/fs/workers/gate.js'

/** Workers and the main thread, with a clock that only `pass` moves. */
function mountOf(workers: number, serving = 1) {
  const memory = createActivityMemory()
  const gate = new Gate(createGateMemory(workers))
  const activity = new Activity(memory, gate)
  const passes = Array.from({ length: workers }, (_, i) => new GatePass(gate.shared, i, 0, () => 0))
  const told = new WorkerActivity(memory)
  for (let i = 0; i < serving; i++) activity.add()
  const state = { now: 0, starts: 0, looks: 0, waiting: false }
  let next: { look: () => void; at: number } | undefined
  const crowding = new Crowding(
    activity,
    () => state.waiting,
    () => state.starts++,
    (look, ms) => {
      if (next) throw new Error('two timers')
      next = { look, at: state.now + ms }
    },
  )
  const pass = (ms: number) => {
    const end = state.now + ms
    while (next && next.at <= end) {
      const { look, at } = next
      next = undefined
      state.now = at
      state.looks++
      look()
    }
    state.now = end
  }
  const begin = (thread = 0) => {
    passes[thread]?.enter()
    if (told.mustTell()) crowding.begin()
  }
  const end = (thread = 0) => passes[thread]?.leave()
  return { memory, gate, activity, crowding, state, pass, begin, end }
}

t.test('an idle mount is not looked at', async t => {
  const { state, pass, begin, end } = mountOf(2)
  pass(10_000)
  t.equal(state.looks, 0)
  begin()
  end()
  pass(10_000)
  t.ok(state.looks > 0)
  t.ok(state.looks < 4, `${state.looks} looks after one request`)
})

t.test('the request after a pause is told again, and one at a time is never crowded', async t => {
  const { state, pass, begin, end } = mountOf(2)
  for (let i = 0; i < 500; i++) {
    begin()
    // Now and then a look meets a request that is being answered, but none that waits.
    if (i % 3 === 0) pass(25)
    end()
    pass(i % 50 === 0 ? 1000 : 5)
  }
  t.equal(state.starts, 0)
  t.ok(state.looks > 50)
  const { looks } = state
  pass(60_000)
  t.ok(state.looks <= looks + 2)
})

t.test('a long stream of requests is looked at rarely', async t => {
  const { state, pass, begin, end } = mountOf(2)
  for (let i = 0; i < 1000; i++) {
    begin()
    pass(5)
    end()
    pass(5)
  }
  t.ok(state.looks > 50 && state.looks < 150, `${state.looks} looks in 10 s`)
})

t.test('requests that wait for 0.1 s start a worker, also if one request hangs', async t => {
  const { state, pass, begin, end } = mountOf(2)
  begin()
  pass(10_000)
  t.equal(state.starts, 0, 'nobody waits')
  state.waiting = true
  pass(60)
  t.equal(state.starts, 0, 'not at once')
  pass(300)
  t.equal(state.starts, 1)
  pass(10_000)
  t.equal(state.starts, 1, 'no look follows')
  end()
})

t.test('waiting for a worker that is not busy does not count', async t => {
  const { state, pass, begin, end } = mountOf(2)
  state.waiting = true
  for (let i = 0; i < 500; i++) {
    begin()
    end()
    pass(20)
  }
  t.equal(state.starts, 0)
})

t.test('with several workers all have to be busy; those that have died cannot help', async t => {
  const { activity, crowding, memory, state, pass, begin, end } = mountOf(3, 2)
  state.waiting = true
  begin(0)
  pass(5000)
  t.equal(state.starts, 0)
  begin(1)
  pass(500)
  t.equal(state.starts, 1)
  crowding.goOn()
  pass(500)
  t.equal(state.starts, 2)
  end(0)
  t.equal(servingWorkers(memory), 2)
  activity.remove(1)
  t.equal(servingWorkers(memory), 1)
  crowding.goOn()
  pass(5000)
  t.equal(state.starts, 2)
  begin(0)
  pass(500)
  t.equal(state.starts, 3)
})

t.test('after the end no worker tells of anything', async t => {
  const { crowding, state, pass, begin, end } = mountOf(1)
  crowding.end()
  for (let i = 0; i < 100; i++) {
    begin()
    pass(50)
    end()
  }
  t.equal(state.looks, 0)
})

t.test('a request that begins while the looking ends is told or seen', async t => {
  const { activity, state, pass, begin, end } = mountOf(2)
  begin()
  end()
  // The second look at the turns, after the workers were asked to tell: a request that has not told.
  const look = activity.look.bind(activity)
  let calls = 0
  activity.look = () => {
    const isActive = look()
    if (!isActive && ++calls === 1) begin()
    return isActive
  }
  state.waiting = true
  pass(1000)
  t.equal(state.starts, 1)
})
