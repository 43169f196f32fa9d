/** Several threads that read and write one disk at once, over one file: what all formats have in common. */
import { once } from 'node:events'
import { Worker } from 'node:worker_threads'
import t, { type Test } from 'tap'
import { type CatalogEntry, catalogOf } from '../../src/image/catalog.js'
import { type Chain, closeChain, type OpenOptions } from '../../src/image/opening/chain.js'
import { openChain } from '../../src/image/opening/open-chain.js'
import { storeOf } from '../../src/image/layer.js'
import { createDiskMemory } from '../../src/image/writing/disk-memory.js'
import { ViewSet } from '../../src/image/reading/view-set.js'
import { readAll } from '../support/image.js'
import type { Encryption } from './reference-cipher.js'
import { createStamps, Stamps } from './stamped.js'
import type { ThreadOutcome, ThreadSetup } from './threads-worker.js'

const IS_LONG = process.env.VIMGFS_TEST_LONG === '1'
const SEED = Number(process.env.VIMGFS_TEST_SEED ?? 1)
const THREADS = 3
/** Of each thread. A busy machine takes longer for them, but tests as much. */
const STEPS = IS_LONG ? 100_000 : 4000

/** Started once: compiling takes longer than a test. */
const workers = Promise.all(
  Array.from({ length: THREADS }, async () => {
    const worker = new Worker(new URL('./threads-worker.ts', import.meta.url))
    await once(worker, 'message')
    return worker
  }),
)
t.teardown(async () => {
  for (const worker of await workers) await worker.terminate()
})

export interface Known {
  readonly disk: Buffer
  readonly snapshots: readonly Buffer[]
  /** How the first layer is encrypted. */
  readonly encryption?: Encryption | undefined
}

/** What threads write of an encrypted disk at least, in bytes: several of them share a sector. */
const PART_BYTES = 64

/** Has all threads at the image at `path`, whose disk and snapshots are known, and closes it. */
export async function runThreads(
  t: Test,
  path: string,
  format: NonNullable<OpenOptions['format']>,
  known: Known,
): Promise<void> {
  const chain = unlocked(openChain(path, { format, access: 'write' }), known)
  const { entries } = catalogOf(chain)
  const [top] = chain.layers
  const memory = createDiskMemory(top, THREADS + 1, storeOf(top))
  const stamps = createStamps(known.disk, known.encryption && PART_BYTES)
  const snapshots = known.snapshots.map(bytes => {
    const shared = new SharedArrayBuffer(bytes.length)
    bytes.copy(Buffer.from(shared))
    return shared
  })
  const shown = entries.filter(entry => entry.kind === 'disk' || entry.kind === 'snapshot')
  t.equal(shown.length, 1 + snapshots.length)

  const setup: Omit<ThreadSetup, 'thread' | 'isLate'> = {
    layers: chain.layers,
    entries: shown,
    memory,
    stamps,
    snapshots,
    seed: SEED,
    steps: STEPS,
    progress: new SharedArrayBuffer(4),
  }
  const outcomes = await Promise.all(
    Array.from({ length: THREADS }, async (_, thread) => {
      const worker = (await workers)[thread] as Worker
      worker.postMessage({ ...setup, thread, isLate: thread === THREADS - 1 })
      const [outcome] = await once(worker, 'message')
      return outcome as ThreadOutcome
    }),
  )
  for (const outcome of outcomes) t.equal(outcome.failure, '', JSON.stringify(outcome))

  const caches = { metadataBytes: 2 ** 20, clusterBytes: 2 ** 20 }
  const set = new ViewSet(chain.layers, caches, undefined, { memory, thread: THREADS })
  set.disk?.close()
  closeChain(chain)

  const model = new Stamps(stamps)
  const again = unlocked(openChain(path, { format }), known)
  t.teardown(() => closeChain(again))
  const read = new ViewSet(again.layers, caches)
  const shownAgain = catalogOf(again).entries
  const bytesOf = (name: string | undefined): Buffer =>
    readAll(read.viewOf(shownAgain.find(entry => entry.name === name) as CatalogEntry))
  model.check(bytesOf(shown[0]?.name), 0, model.lowest(0, model.sectors), 'in the end')
  known.snapshots.forEach((expected, index) => {
    const name = shown[index + 1]?.name as string
    t.ok(bytesOf(name).equals(expected), `${name} is unchanged`)
  })
}

/** With the key, as whoever mounts it gives it. */
function unlocked(chain: Chain, { encryption }: Known): Chain {
  if (!encryption) return chain
  const [top, ...below] = chain.layers
  const method = encryption.countsBy === 'disk' ? 'AES' : 'LUKS'
  return { ...chain, layers: [{ ...top, encryption: { method, spec: encryption.spec } }, ...below] }
}
