/** Memory for threads that end: real ones, which sleep on a semaphore as libfuse's do. */
import { once } from 'node:events'
import { readdirSync } from 'node:fs'
import { createRequire } from 'node:module'
import { setTimeout as sleep, setImmediate as turn } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import koffi from 'koffi'
import t from 'tap'
import { ThreadMemory } from '../../../src/fs/libfuse/threads.js'
import { until } from '../../support/mount.js'

const SESSION_BYTES = 400
const SEMAPHORE_AT = SESSION_BYTES - 32
const BYTES = 600
const THREADS = 20
const ASLEEP_MS = 30
/** A handle of the loop's must not be collected: the package has references to those that run. */
const kept: Buffer[] = []

const node = koffi.load(null)
const ASYNC_AT = BYTES - node.func('size_t uv_handle_size(int type)')(1)
const defaultLoop = node.func('void *uv_default_loop()')
const initAsync = node.func('int uv_async_init(void *loop, void *handle, void *act)')
const unref = node.func('void uv_unref(void *handle)')
const initSemaphore = node.func('int sem_init(void *semaphore, int isShared, unsigned int value)')
const post = node.func('int sem_post(void *semaphore)')

const session = Buffer.from(new SharedArrayBuffer(SESSION_BYTES))
const semaphore = session.subarray(SEMAPHORE_AT)
initSemaphore(semaphore, 0, 0)

const SLEEPER = `
  const { workerData, parentPort } = require('node:worker_threads')
  const koffi = require(workerData.koffi)
  const wait = koffi.load(null).func('int sem_wait(void *semaphore)')
  parentPort.postMessage('ready')
  wait(Buffer.from(workerData.session, ${SEMAPHORE_AT}))
  // Lives on until it is ended.
  parentPort.on('message', () => {})
`

/** A thread that asks, is given memory, and is woken. */
async function thread(memory: ThreadMemory): Promise<{ given: Buffer; worker: Worker }> {
  const koffi = createRequire(import.meta.url).resolve('koffi')
  const workerData = { session: session.buffer, koffi }
  const worker = new Worker(SLEEPER, { eval: true, workerData, execArgv: [] })
  await once(worker, 'message')
  // The package's threads sleep at once; this one has some JavaScript before it.
  await sleep(ASLEEP_MS)
  const given = memory.allocate(session, BYTES)
  // As the package goes on.
  initAsync(defaultLoop(), given.subarray(ASYNC_AT), null)
  unref(given.subarray(ASYNC_AT))
  post(semaphore)
  kept.push(given)
  return { given, worker }
}

t.test('that of ended threads is used again', async t => {
  const memory = new ThreadMemory()
  const seen = new Set<Buffer>()
  // One Worker starts threads of node's that stay.
  await (await thread(memory)).worker.terminate()
  const before = readdirSync('/proc/self/task').length
  for (let index = 0; index < THREADS; index++) {
    const { given, worker } = await thread(memory)
    t.equal(given.length, BYTES)
    seen.add(given)
    await worker.terminate()
    // The kernel takes it away a little later.
    t.ok(await until(() => readdirSync('/proc/self/task').length <= before))
    await turn()
  }
  t.ok(seen.size < THREADS / 2, `${seen.size} for ${THREADS} threads`)
})

t.test('that of running threads is not', async t => {
  const memory = new ThreadMemory()
  const threads = []
  for (let index = 0; index < 4; index++) threads.push(await thread(memory))
  t.equal(new Set(threads.map(({ given }) => given)).size, threads.length)
  for (const { worker } of threads) await worker.terminate()
})

t.test('that of threads which are not found is not', async t => {
  const memory = new ThreadMemory()
  const given = Array.from({ length: 5 }, () => memory.allocate(session, BYTES))
  await turn()
  await turn()
  given.push(memory.allocate(session, BYTES))
  t.equal(new Set(given).size, given.length)
  t.ok(given.every(each => each.every(byte => byte === 0)))
})
