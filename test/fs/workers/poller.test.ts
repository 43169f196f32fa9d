/** The workers that wait for requests: one leader while they come one by one, else all of them. */
import { Worker } from 'node:worker_threads'
import t from 'tap'
import { createPollMemory, Poller } from '../../../src/fs/workers/poller.js'

const EAGAIN = 11
const LEADER = 1

/** A device: each number is how many looks it takes until a request is there; -1: none comes. */
class Device {
  private left: number | undefined
  constructor(readonly waits: number[]) {}
  take = () => {
    this.left ??= this.waits.shift() ?? -1
    if (this.left < 0) return -1
    if (this.left-- > 0) return -1
    this.left = undefined
    return 64
  }
}

function poller(memory: SharedArrayBuffer, worker: number, waits: number[]) {
  const device = new Device(waits)
  // A clock that five looks take to the end, however busy the machine is.
  let now = 0
  const clock = () => {
    now += 0.01
    return now
  }
  const one = new Poller(memory, worker, device.take, () => EAGAIN, clock)
  return () => one.poll(0, Buffer.alloc(0))
}

t.test('requests one by one make a leader, and none in time ends that', async t => {
  const memory = createPollMemory()
  const words = new Int32Array(memory)
  const poll = poller(memory, 1, [3, 3, 3, 3, 3, -1])
  for (let i = 0; i < 3; i++) t.equal(poll(), 64)
  t.equal(words[LEADER], 0)
  t.equal(poll(), 64)
  t.equal(words[LEADER], 2)
  t.equal(poll(), 64)
  t.equal(poll(), -1, 'now it sleeps until there is one')
  t.equal(words[LEADER], 0)
})

t.test('requests that wait end it too, and make no leader', async t => {
  const memory = createPollMemory()
  const words = new Int32Array(memory)
  const poll = poller(memory, 0, [2, 2, 2, 2, 0, 2, 0, 0, 0, 0, 0, 0, 0])
  for (let i = 0; i < 7; i++) t.equal(poll(), 64)
  t.equal(words[LEADER], 1, 'one alone may wait')
  for (let i = 0; i < 5; i++) t.equal(poll(), 64)
  t.equal(words[LEADER], 0)
})

/** A worker that finds a request at its third look, during which the clock jumps by `jumpMs`. */
function preempted(memory: SharedArrayBuffer) {
  let misses = 0
  let jump = 0
  const clock = { now: 0 }
  const take = () => {
    clock.now += 0.01
    if (misses-- > 0) return -1
    clock.now += jump
    return 64
  }
  const one = new Poller(
    memory,
    0,
    take,
    () => EAGAIN,
    () => clock.now,
  )
  const poll = (jumpMs = 0) => {
    misses = 2
    jump = jumpMs
    return one.poll(0, Buffer.alloc(0))
  }
  const miss = () => {
    misses = 10
    return one.poll(0, Buffer.alloc(0))
  }
  return { clock, poll, miss }
}

t.test('a worker that loses its processor while it polls pauses, for longer each time', t => {
  const memory = createPollMemory()
  const words = new Int32Array(memory)
  const { clock, poll } = preempted(memory)
  const pause = () => {
    const from = clock.now
    while (poll() < 0) clock.now += 1
    return Math.round(clock.now - from)
  }
  for (let i = 0; i < 5; i++) t.equal(poll(), 64)
  t.equal(words[LEADER], 1)
  t.equal(poll(3), 64, 'what it finds then is a request like others')
  t.equal(words[LEADER], 0)
  t.equal(pause(), 5)
  for (let i = 0; i < 5; i++) t.equal(poll(), 64)
  t.equal(words[LEADER], 1, 'it leads again')
  const pauses = [10, 20, 40, 80, 160, 320, 320]
  t.same(
    pauses.map(() => poll(3) && pause()),
    pauses,
  )
  for (let i = 0; i < 1000; i++) poll()
  poll(3)
  t.equal(pause(), 5, 'after many undisturbed requests it begins anew')
  t.end()
})

t.test('a worker that finds nothing again and again pauses, too', t => {
  const { clock, poll, miss } = preempted(createPollMemory())
  for (let i = 0; i < 7; i++) t.equal(miss(), -1)
  t.equal(poll(), 64, 'one that is found lets it go on')
  for (let i = 0; i < 8; i++) t.equal(miss(), -1)
  const { now } = clock
  t.equal(poll(), -1)
  t.equal(clock.now, now, 'it has not even looked')
  clock.now += 6
  t.equal(poll(), 64)
  for (let i = 0; i < 8; i++) t.equal(miss(), -1)
  clock.now += 6
  t.equal(poll(), 64, 'this pause does not grow')
  t.end()
})

t.test('one polls at a time', async t => {
  const memory = createPollMemory()
  let inner: number | undefined
  const other = poller(memory, 1, [0])
  const one = new Poller(
    memory,
    0,
    () => {
      inner = other()
      return 64
    },
    () => EAGAIN,
  )
  t.equal(one.poll(0, Buffer.alloc(0)), 64)
  t.equal(inner, -1)
})

t.test('a parked worker comes back when the leader is busy for long, or has ended', async t => {
  const memory = createPollMemory()
  const words = new Int32Array(memory)
  words[LEADER] = 1
  const other = poller(memory, 1, [0])
  t.equal(other(), -1, 'the leader took nothing for a while')
  t.equal(words[LEADER], 0)
  words[LEADER] = 1
  const ending = new Worker(
    `const w = new Int32Array(require('node:worker_threads').workerData)
     const timer = setInterval(() => w[2]++, 2)
     setTimeout(() => { clearInterval(timer); Atomics.store(w, 1, 0); Atomics.notify(w, 1) }, 100)`,
    { eval: true, workerData: memory },
  )
  t.teardown(() => ending.terminate())
  t.equal(other(), -1)
  t.equal(words[LEADER], 0)
})
