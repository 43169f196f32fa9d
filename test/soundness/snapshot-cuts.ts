/** Cuts the power, or makes a call fail, while the snapshots of an image change. */
import { SystemError } from '../../src/errors.js'
import type { WritableStore } from '../../src/io/store.js'
import {
  type Fault,
  FaultPlan,
  FaultStore,
  FullDiskStore,
  type Journal,
  type MemoryStore,
  RecordingStore,
} from '../support/stores.js'
import type { Kind } from './kinds.js'
import { randomChoice, Replay } from './replay.js'
import { goesOn, type SnapshotChange, stateOf } from './snapshot-changes.js'
import { Random } from './steps.js'

export interface SnapshotCutOptions {
  readonly seed: number
  /** Cuts at random before each call. */
  readonly perPlace: number
  /** All subsets are tried where no more than so many calls are in doubt. */
  readonly allUpTo: number
  /** One of so many cuts is written again. */
  readonly goesOnEvery: number
  readonly sample?: (file: MemoryStore) => void
  /** What stands between the change and the file: a flaw that must be noticed. */
  readonly flaw?: (store: WritableStore) => WritableStore
}

/** Returns how many cuts it judged, and how many of them left the new state. Throws for the first that is wrong. */
export function cutSnapshots(
  kind: Kind,
  change: SnapshotChange,
  options: SnapshotCutOptions,
): { judged: number; after: number } {
  const { flaw = store => store } = options
  const random = new Random(options.seed)
  const journal: Journal<never> = []
  const whole = change.base.clone()
  change.run(flaw(new RecordingStore(whole, journal, 0)))
  if (stateOf(kind, change, whole) !== 'after') throw new Error('it has not changed')
  const replay = new Replay(journal, [change.base], () => {})
  let judged = 0
  let after = 0
  const cut = (at: number, choice: ReturnType<typeof randomChoice>) => {
    const model = random.chance(0.5) ? 'sectors' : 'calls'
    const [file] = replay.cut(choice, model, random.chance(0.2)) as [MemoryStore]
    judged++
    try {
      if (stateOf(kind, change, file) === 'after') after++
      options.sample?.(file.clone())
      if (judged % options.goesOnEvery === 0) goesOn(kind, file, judged)
    } catch (error) {
      const where = `${kind.title}, ${change.title}, cut before call ${at} of ${journal.length}`
      const what = `${where}: ${(error as Error).message}\n  ${replay.describe(choice)}`
      throw new Error(what, { cause: error })
    }
  }
  for (let at = 0; at <= journal.length; at++) {
    replay.advance(at)
    const count = replay.pending
    cut(at, () => true)
    if (count > 0 && count <= options.allUpTo) {
      for (let set = 0; set < 2 ** count; set++) cut(at, i => ((set >> i) & 1) === 1)
    } else if (count > 0) {
      for (let i = 0; i < options.perPlace; i++) cut(at, randomChoice(random, count))
    }
  }
  return { judged, after }
}

/**
 * Makes call after call fail, `most` of them at most. Throws unless the change reports it, the image is whole, and the change
 * succeeds when it is made again. Returns how many calls failed.
 */
export function failSnapshots(kind: Kind, change: SnapshotChange, most: number): number {
  const plan = new FaultPlan()
  change.run(new FaultStore(change.base.clone(), plan))
  const { write, sync, truncate } = plan.counts
  const all = write + sync + truncate
  const stride = Math.max(1, Math.ceil(all / most))
  let struck = 0
  for (let nth = 0; nth < all; nth += stride) {
    const persists = nth % 2 === 1
    const calls = ['write', 'sync', 'truncate'] as const
    fail(kind, change, { nth, calls, errno: EIO, persists, part: (nth % 4) / 4 })
    struck++
  }
  return struck
}

const EIO = 5
const ENOSPC = 28

function fail(kind: Kind, change: SnapshotChange, fault: Fault): void {
  const where = `${kind.title}, ${change.title}, ${JSON.stringify(fault)}`
  const file = change.base.clone()
  expectError(where, EIO, () => change.run(new FaultStore(file, new FaultPlan(fault))))
  requireWhole(kind, change, file, where)
}

/** The file is whole, and the change can still be made. */
function requireWhole(kind: Kind, change: SnapshotChange, file: MemoryStore, where: string): void {
  try {
    const state = stateOf(kind, change, file)
    if (state === 'before') {
      change.run(file)
      if (stateOf(kind, change, file) !== 'after') throw new Error('made again, it has no effect')
    }
    goesOn(kind, file, 1)
  } catch (error) {
    throw new Error(`${where}: ${(error as Error).message}`, { cause: error })
  }
}

function expectError(where: string, errno: number, act: () => void): void {
  try {
    act()
  } catch (error) {
    if (error instanceof SystemError && error.errno === errno) return
    throw new Error(`${where}: ${(error as Error).message}`, { cause: error })
  }
  throw new Error(`${where}: it reports success`)
}

/** Makes the change on disks with less room than it needs. Returns how many were full. */
export function fillSnapshots(kind: Kind, change: SnapshotChange, tries: number): number {
  let refused = 0
  for (let i = 0; i < tries; i++) {
    const file = change.base.clone()
    const store = new FullDiskStore(file)
    store.limitBytes = store.usedBytes + i * 4096
    const where = `${kind.title}, ${change.title}, with ${i} blocks left`
    try {
      change.run(store)
      if (stateOf(kind, change, file) !== 'after') throw new Error('it has no effect')
      break
    } catch (error) {
      if (!(error instanceof SystemError) || error.errno !== ENOSPC) throw error
      refused++
      if (stateOf(kind, change, file) !== 'before') throw new Error(`${where}: it has changed`)
      if (file.sizeBytes !== change.base.sizeBytes) throw new Error(`${where}: it is longer`)
    }
    requireWhole(kind, change, file, where)
  }
  return refused
}
