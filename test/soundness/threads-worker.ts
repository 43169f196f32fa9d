/** One thread of threads.test.ts: reads and writes a disk that others read and write. */
import { parentPort } from 'node:worker_threads'
import type { CatalogEntry } from '../../src/image/catalog.js'
import type { LayerSpec } from '../../src/formats/format.js'
import type { DiskMemory } from '../../src/image/writing/disk-memory.js'
import { ViewSet } from '../../src/image/reading/view-set.js'
import type { WritableDisk } from '../../src/formats/writable.js'
import { bracketed } from '../support/writable.js'
import { SECTOR, type StampMemory, Stamps } from './stamped.js'
import { Random } from './steps.js'

export interface ThreadSetup {
  readonly layers: readonly LayerSpec[]
  readonly entries: readonly CatalogEntry[]
  readonly memory: DiskMemory
  readonly thread: number
  readonly stamps: StampMemory
  /** The contents of the snapshots, in the order of `entries` after the disk. */
  readonly snapshots: readonly SharedArrayBuffer[]
  readonly seed: number
  readonly steps: number
  /** How many steps thread 0 has done. The last thread begins when some are done, as a mount's later threads do. */
  readonly progress: SharedArrayBuffer
  readonly isLate: boolean
}

const LATE_AFTER_STEPS = 500

export interface ThreadOutcome {
  readonly failure: string
  readonly reads: number
  readonly writes: number
  readonly zeros: number
  readonly flushes: number
}

/** The caches are small, so that entries leave them and come again. */
const CACHES = { metadataBytes: 128 * 1024, clusterBytes: 256 * 1024 }

function run(setup: ThreadSetup): ThreadOutcome {
  const { memory, thread, seed } = setup
  const progress = new Int32Array(setup.progress)
  if (setup.isLate) {
    for (let done = 0; done < LATE_AFTER_STEPS; done = Atomics.load(progress, 0)) {
      Atomics.wait(progress, 0, done)
    }
  }
  const set = new ViewSet(setup.layers, CACHES, undefined, { memory, thread })
  const disk = set.disk as WritableDisk
  const views = setup.entries.map(entry => bracketed(disk, set.viewOf(entry)))
  const read = views[0] as (offset: number, length: number) => Buffer
  const snapshots = setup.snapshots.map(shared => Buffer.from(shared))
  const stamps = new Stamps(setup.stamps)
  const { unitBytes } = stamps
  const isOfParts = unitBytes < SECTOR
  const random = new Random(seed * 31 + thread)
  const counts = { reads: 0, writes: 0, zeros: 0, flushes: 0 }
  const who = `thread ${thread}, seed ${seed}`

  const range = (): [number, number] => {
    // Half of all requests meet in a few places, where several writers write parts of one sector.
    const first = random.chance(0.5)
      ? random.below(isOfParts ? 20 : 64)
      : random.below(stamps.sectors)
    const longest = random.pick(isOfParts ? [1, 2, 8, 300] : [1, 8, 40, 300])
    return [first, Math.min(1 + random.below(longest), stamps.sectors - first)]
  }
  const change = (isZero: boolean): void => {
    const [first, count] = range()
    if (!stamps.claim(first, count)) return
    const bytes = stamps.begin(first, count, isZero)
    if (isZero) disk.zero(first * unitBytes, count * unitBytes)
    else disk.write(bytes, 0, bytes.length, first * unitBytes)
    stamps.end(first, count)
    // A read that begins after the write has returned.
    const lowest = stamps.lowest(first, count)
    stamps.check(
      read(first * unitBytes, count * unitBytes),
      first,
      lowest,
      `${who}, after its write`,
    )
    stamps.release(first, count)
    if (isZero) counts.zeros++
    else counts.writes++
  }
  const look = (): void => {
    const [first, count] = range()
    const lowest = stamps.lowest(first, count)
    stamps.check(read(first * unitBytes, count * unitBytes), first, lowest, who)
    counts.reads++
  }
  const lookBack = (): void => {
    const index = random.below(snapshots.length)
    const expected = snapshots[index] as Buffer
    const offset = random.below(expected.length)
    const length = Math.min(1 + random.below(100_000), expected.length - offset)
    const actual = views[index + 1]?.(offset, length)
    if (actual?.equals(expected.subarray(offset, offset + length))) return
    throw new Error(`${who}: snapshot ${index + 1} has changed at ${offset}+${length}`)
  }

  try {
    for (let step = 0; step < setup.steps; step++) {
      const roll = random.below(100)
      if (roll < 40) change(false)
      else if (roll < 52) change(true)
      else if (roll < 58 && snapshots.length > 0) lookBack()
      else if (roll < 60) {
        disk.flush()
        counts.flushes++
      } else look()
      if (thread === 0) advance(progress)
    }
    return { failure: disk.failure, ...counts }
  } catch (error) {
    return { failure: `${(error as Error).stack}`, ...counts }
  } finally {
    if (thread === 0) advance(progress, LATE_AFTER_STEPS)
  }
}

function advance(progress: Int32Array, steps = 1): void {
  Atomics.add(progress, 0, steps)
  Atomics.notify(progress, 0)
}

parentPort?.on('message', (setup: ThreadSetup) => parentPort?.postMessage(run(setup)))
parentPort?.postMessage('ready')
