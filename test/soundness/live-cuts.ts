/** Power cuts and errors while snapshots of a disk come and go between its writes. */
import { ImageError, SystemError } from '../../src/errors.js'
import type { changeQuietly } from '../../src/image/writing/quiet-change.js'
import { ReusedBuffers } from '../support/image.js'
import {
  type Fault,
  FaultPlan,
  FaultStore,
  FullDiskStore,
  type Journal,
  type MemoryStore,
  RecordingStore,
} from '../support/stores.js'
import { readImage } from '../support/writable.js'
import { DiskModel, type Strictness } from './disk-model.js'
import { judge } from './judge.js'
import { diskFiles, type Kind } from './kinds.js'
import { LiveRun, type LiveStep, NO_WITNESS, type State, type Witness } from './live-run.js'
import { type CutModel, randomChoice, Replay } from './replay.js'
import { goesOn } from './snapshot-changes.js'
import { Random, type Step } from './steps.js'

export interface LiveCutOptions {
  readonly seed: number
  /** Cuts at random, about. */
  readonly cuts: number
  /** One of so many cuts is written again. */
  readonly goesOnEvery: number
  readonly sample?: (file: MemoryStore) => void
  readonly quietly?: typeof changeQuietly
}

type Mark =
  | { readonly begun: Step }
  | { readonly flushed: true }
  | { readonly changing: readonly State[] }
  | { readonly changed: State }

/** Writes marks into a journal. */
const marking = (journal: Journal<Mark>): Witness => {
  const mark = (mark: Mark) => void journal.push({ kind: 'mark', mark })
  return {
    begin: begun => mark({ begun }),
    flushed: () => mark({ flushed: true }),
    changing: changing => mark({ changing }),
    changed: changed => mark({ changed }),
  }
}

/** Returns how many cuts it judged. Throws for the first that is wrong. */
export function cutLive(kind: Kind, steps: readonly LiveStep[], options: LiveCutOptions): number {
  const journal: Journal<Mark> = []
  const file = kind.image.clone()
  const store = new RecordingStore(file, journal, 0)
  new LiveRun(kind, file, store, marking(journal), options.quietly).all(steps)
  requireSound(kind, file, kind.leaks)
  return new Cutter(kind, journal, options).run()
}

class Cutter {
  private model: DiskModel
  private snapshots: readonly Buffer[]
  /** The states that a change in progress may leave. */
  private possible: readonly State[] | undefined
  private readonly random: Random
  private readonly replay: Replay<Mark>
  private judged = 0

  constructor(
    private readonly kind: Kind,
    private readonly journal: Journal<Mark>,
    private readonly options: LiveCutOptions,
  ) {
    this.model = new DiskModel(kind.disk)
    this.snapshots = kind.snapshots
    this.random = new Random(options.seed)
    this.replay = new Replay(journal, [kind.image], mark => this.see(mark))
  }

  run(): number {
    const { journal, random, replay, options } = this
    const perPlace = options.cuts / journal.length
    for (let at = 0; at <= journal.length; at++) {
      replay.advance(at)
      const isBeforeSync = journal[at]?.kind === 'sync'
      const count = replay.pending
      if (isBeforeSync && count > 0) {
        const one = random.below(count)
        this.cut(at, index => index !== one)
        this.cut(at, index => index === one)
      }
      const tries = Math.floor(perPlace) + (random.chance(perPlace % 1) ? 1 : 0)
      for (let i = 0; i < tries; i++) this.cut(at, randomChoice(random, Math.max(1, count)))
    }
    return this.judged
  }

  private see(mark: Mark): void {
    if ('begun' in mark) this.model.begin(mark.begun)
    else if ('flushed' in mark) this.model.flushed()
    else if ('changing' in mark) this.possible = mark.changing
    else {
      this.possible = undefined
      this.model = new DiskModel(mark.changed.disk)
      this.snapshots = mark.changed.snapshots
    }
  }

  private cut(at: number, choice: ReturnType<typeof randomChoice>): void {
    const { kind, random, replay, options, journal } = this
    const model: CutModel = random.chance(0.5) ? 'sectors' : 'calls'
    const [file] = replay.cut(choice, model, random.chance(0.2)) as [MemoryStore]
    this.judged++
    try {
      this.check(file, model === 'sectors' ? 'exactly' : 'mixed')
      options.sample?.(file.clone())
      if (this.judged % options.goesOnEvery === 0) goesOn(kind, file, this.judged)
    } catch (error) {
      const where = `${kind.title}, cut before entry ${at} of ${journal.length}`
      const what = `${where}: ${(error as Error).message}\n  ${replay.describe(choice)}`
      throw new Error(what, { cause: error })
    }
  }

  private check(file: MemoryStore, strictness: Strictness): void {
    const shown = readImage(diskFiles(this.kind, [file]), SHOWN)
    if (this.possible) {
      requireOneOf(this.possible, shown)
    } else {
      this.model.check(shown.disk, strictness)
      requireOneOf([{ disk: shown.disk, snapshots: this.snapshots }], shown)
    }
    requireSound(this.kind, file)
  }
}

const SHOWN = new ReusedBuffers()

function requireOneOf(states: readonly State[], shown: State): void {
  const isSame = (state: State) =>
    state.disk.equals(shown.disk) &&
    state.snapshots.length === shown.snapshots.length &&
    state.snapshots.every((snapshot, i) => snapshot.equals(shown.snapshots[i] as Buffer))
  if (states.some(isSame)) return
  throw new Error(`it shows none of ${states.length} states; ${shown.snapshots.length} snapshots`)
}

/** @param leaks the most clusters that may leak; by default any number */
function requireSound(kind: Kind, file: MemoryStore, leaks = Number.POSITIVE_INFINITY): void {
  const verdict = judge(file)
  // An image with lazy refcounts that is open asks for its counts to be rebuilt.
  if (verdict.isDirty && kind.isLazy) return
  if (verdict.corruptions.length > 0) throw new Error(verdict.corruptions.join('; '))
  if (verdict.leaks > leaks) throw new Error(`${verdict.leaks} clusters leak, not ${leaks}`)
}

/** Returns how many calls the steps make. */
export function callsOfLive(kind: Kind, steps: readonly LiveStep[]): FaultPlan['counts'] {
  const plan = new FaultPlan()
  const file = kind.image.clone()
  new LiveRun(kind, file, new FaultStore(file, plan)).all(steps)
  return plan.counts
}

/**
 * Has a call fail. Throws unless the error is reported, the disk and all snapshots read as before or as after what failed, and the
 * image is sound in the end. Returns whether the disk has become read-only.
 */
export function failLive(
  kind: Kind,
  steps: readonly LiveStep[],
  fault: Fault,
  quietly?: typeof changeQuietly,
): boolean {
  const plan = new FaultPlan(fault)
  const file = kind.image.clone()
  const run = new LiveRun(kind, file, new FaultStore(file, plan), NO_WITNESS, quietly)
  try {
    return endure(run, steps, () => plan.failed.length > 0 && plan.heal())
  } catch (error) {
    const where = `${kind.title}, ${JSON.stringify(fault)} struck ${plan.failed.join(', ')}`
    throw new Error(`${where}: ${(error as Error).message}`, { cause: error })
  } finally {
    requireSound(kind, file)
  }
}

/** Does the same on a disk that has `roomBytes` left until something is refused. */
export function fillLive(kind: Kind, steps: readonly LiveStep[], roomBytes: number): boolean {
  const file = kind.image.clone()
  const disk = new FullDiskStore(file)
  const run = new LiveRun(kind, file, disk, NO_WITNESS)
  disk.limitBytes = disk.usedBytes + roomBytes
  const isReadOnly = endure(run, steps, () => {
    disk.limitBytes = Number.POSITIVE_INFINITY
  })
  requireSound(kind, file)
  return isReadOnly
}

/** Does the steps, also after one has failed. `heal` is called after each failure. */
function endure(run: LiveRun, steps: readonly LiveStep[], heal: () => void): boolean {
  for (const step of steps) {
    const { opened } = run
    try {
      run.step(step)
    } catch (error) {
      if (!(error instanceof SystemError) && !(error instanceof ImageError)) throw error
      const isReadOnly = opened.disk.failure !== ''
      if (step.kind !== 'change' && step.kind !== 'flush') {
        const actual = run.opened.read(0, run.opened.disk.sizeBytes)
        run.model.disk.failed(step, actual, 'after an error', isReadOnly)
      }
      // The rest of this run shows that it reads on.
      if (isReadOnly && run.opened === opened) return true
      heal()
    }
    run.checkAll(`after ${step.kind}`)
  }
  run.opened.disk.close()
  return false
}
