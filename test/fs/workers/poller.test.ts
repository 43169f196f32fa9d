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
