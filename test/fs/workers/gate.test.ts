import { Worker } from 'node:worker_threads'
import t from 'tap'
import { createGateMemory, GATE, Gate, GatePass } from '../../../src/fs/workers/gate.js'

const never = () => {
  throw new Error('there is no newer world')
}

t.test('an open gate', async t => {
  const gate = new Gate(createGateMemory(2))
  const pass = new GatePass(gate.shared, 1, 0, never)
  t.equal(pass.enter(), true)
  pass.leave()
  gate.drainNow()
  await gate.drained()
})

t.test('changes wait, and other requests do not', async t => {
  const gate = new Gate(createGateMemory(1))
  const pass = new GatePass(gate.shared, 0, 0, never)
  gate.set(GATE.changesWait)
  t.equal(pass.enter(), false)
  t.equal(pass.admit(false, false), true, 'a read is served')
  pass.leave()
  t.equal(pass.enter(), false)
  t.equal(pass.admit(true, false), false, 'a write is put aside')
  gate.drainNow()
  t.equal(pass.holdsChanges, true)
  gate.set(GATE.open)
  t.equal(pass.holdsChanges, false)
  t.equal(pass.enter(), true)
  pass.leave()
})

t.test('a new world is taken before the next request, once', async t => {
  const gate = new Gate(createGateMemory(1))
  let worlds = 0
  const pass = new GatePass(gate.shared, 0, 0, () => ++worlds)
  gate.raise(1)
  t.equal(pass.enter(), false)
  t.equal(pass.admit(true, false), true)
  pass.leave()
  t.equal(pass.enter(), true)
  pass.leave()
  t.equal(worlds, 1)
})

t.test('waiting for workers', async t => {
  const gate = new Gate(createGateMemory(1))
  const pass = new GatePass(gate.shared, 0, 0, never)
  t.equal(pass.enter(), true)
  let isDrained = false
  const drained = gate.drained().then(() => {
    isDrained = true
  })
  await new Promise(resolve => setImmediate(resolve))
  t.equal(isDrained, false, 'the worker is inside')
  pass.leave()
  t.equal(pass.enter(), true, 'the next request does not count')
  await drained
})

t.test('a thread that waits while all requests wait', async t => {
  const gate = new Gate(createGateMemory(1))
  gate.set(GATE.allWait)
  const thread = new Worker(
    `const { workerData, parentPort } = require('node:worker_threads')
     const words = new Int32Array(workerData)
     Atomics.add(words, 1, 1)
     parentPort.postMessage('inside')
     Atomics.add(words, 1, 1)
     Atomics.wait(words, 0, ${GATE.allWait})
     Atomics.add(words, 1, 1)
     parentPort.postMessage(Atomics.load(words, 0))`,
    { eval: true, workerData: gate.shared },
  )
  const next = () => new Promise(resolve => thread.once('message', resolve))
  t.equal(await next(), 'inside')
  gate.drainNow()
  const woken = next()
  gate.set(GATE.open)
  t.equal(await woken, GATE.open)
  await thread.terminate()
})
