/**
 * Cuts the power at any moment of a scenario, and judges the files that remain.
 *
 *  (1) The image opens, and all of it reads.
 *  (2) Every entry points at a cluster that is counted and present: a check finds leaks at worst.
 *  (3) A sector that was flushed and not written again since reads back. One that was written since
 *      reads as it was then or as any write since left it, never as anything else.
 *  (4) Snapshots are unchanged to the byte.
 *  (5) It can be written again, and is sound then.
 */
import { type Journal, type MemoryStore, RecordingStore } from '../support/stores.js'
import { DiskModel } from './disk-model.js'
import { type Choice, type CutModel, randomChoice, Replay } from './replay.js'
import { act, checkReads, isPossible, type Subject } from './scenario.js'
import { Random, randomSteps, show, shortest, type Step } from './steps.js'

export interface CutOptions {
  readonly seed: number
  /** Cuts at random that are tried, about. */
  readonly cuts: number
  /** All subsets are tried where no more than so many writes are in doubt. */
  readonly allUpTo: number
  /**
   * Where more are in doubt before a sync: so many times one of them alone is lost, and as often one alone is kept. That
   * shows each pair of writes that need an order and have none.
   */
  readonly single?: number
  /** One of so many cuts is opened and written again. */
  readonly recoverEvery: number
  /** Is handed what cuts left. */
  readonly sample?: (files: readonly MemoryStore[]) => void
  /** Whether a failure is told as it was found: nobody looks for the shortest steps that show it. */
  readonly isExpected?: boolean
}

type Mark =
  | { readonly begun: Step }
  | { readonly flushed: true }
  /** Closes it, and opens it again as it is now. */
  | { readonly reopened: Subject }

/** How many cuts were judged. Throws the failure with the shortest steps that show it. */
export function cutPower(subject: Subject, steps: readonly Step[], options: CutOptions): number {
  try {
    return runAndCut(subject, steps, options)
  } catch (error) {
    if (options.isExpected) throw error
    let last = error as Error
    const fails = (fewer: readonly Step[]): boolean => {
      try {
        runAndCut(subject, fewer, options)
        return false
      } catch (again) {
        last = again as Error
        return true
      }
    }
    const { sample: _, ...quiet } = options
    options = quiet
    const fewest = shortest(steps, fails)
    fails(fewest)
    const message = `${subject.title}, seed ${options.seed}: ${last.message}\n  steps: ${show(fewest)}`
    throw new Error(message, { cause: last })
  }
}

/** Records the steps, then cuts. */
function runAndCut(subject: Subject, steps: readonly Step[], options: CutOptions): number {
  const journal: Journal<Mark> = []
  record(subject, steps, journal)
  return new Cutter(subject, journal, options).run()
}

function record(first: Subject, steps: readonly Step[], journal: Journal<Mark>): void {
  let subject = first
  const files = subject.files.map(base => base.clone())
  const stores = files.map((store, file) => new RecordingStore(store, journal, file))
  const model = new DiskModel(subject.disk)
  const mark = (mark: Mark) => journal.push({ kind: 'mark', mark })
  const flushed = () => {
    model.flushed()
    mark({ flushed: true })
  }
  let opened = subject.open(stores)
  for (const step of steps) {
    if (!isPossible(step, model.sizeBytes)) continue
    if (step.kind === 'flush') {
      opened.disk.flush()
      flushed()
    } else if (step.kind === 'reopen') {
      opened.disk.close()
      subject.checkClosed(files, model)
      subject = subject.reopened(files)
      opened = subject.open(stores)
      flushed()
      mark({ reopened: subject })
    } else {
      mark({ begun: step })
      model.begin(step)
      act(opened, step)
      checkReads(opened, model, step)
    }
  }
  checkReads(opened, model)
  opened.disk.close()
  flushed()
  subject.checkClosed(files, model)
}

class Cutter {
  private readonly model: DiskModel
  private readonly random: Random
  private readonly replay: Replay<Mark>
  private judged = 0

  constructor(
    private subject: Subject,
    private readonly journal: Journal<Mark>,
    private readonly options: CutOptions,
  ) {
    this.model = new DiskModel(subject.disk)
    this.random = new Random(options.seed)
    this.replay = new Replay(journal, subject.files, mark => {
      if ('begun' in mark) this.model.begin(mark.begun)
      else if ('reopened' in mark) this.subject = mark.reopened
      else this.model.flushed()
    })
  }

  run(): number {
    const { journal, options } = this
    const perPlace = options.cuts / journal.length
    for (let at = 0; at <= journal.length; at++) {
      this.replay.advance(at)
      const count = this.replay.pending
      const isBeforeSync = journal[at]?.kind === 'sync' && journal[at - 1]?.kind !== 'sync'
      if (count === 0) {
        if (isBeforeSync || at === journal.length) this.cut(at, () => true)
        continue
      }
      // Killed, not cut: all that was written is there.
      if (journal[at - 1]?.kind !== 'mark' && this.random.chance(perPlace)) this.cut(at, () => true)
      if (isBeforeSync && count <= options.allUpTo) {
        for (let set = 0; set < 2 ** count; set++) this.cut(at, i => ((set >> i) & 1) === 1)
      } else if (isBeforeSync) this.single(at, count)
      const tries = Math.floor(perPlace) + (this.random.chance(perPlace % 1) ? 1 : 0)
      for (let i = 0; i < tries; i++) this.cut(at, randomChoice(this.random, count))
    }
    return this.judged
  }

  private single(at: number, count: number): void {
    const tries = Math.min(count, this.options.single ?? 0)
    const first = this.random.below(count)
    for (let i = 0; i < tries; i++) {
      const one = (first + Math.floor((i * count) / tries)) % count
      this.cut(at, each => each !== one)
      this.cut(at, each => each === one)
    }
  }

  private cut(at: number, choice: Choice): void {
    const { options, random, replay, subject } = this
    const model: CutModel = random.chance(0.5) ? 'sectors' : 'calls'
    const keepsSize = random.chance(0.2)
    const files = replay.cut(choice, model, keepsSize)
    this.judged++
    try {
      subject.check(files, this.model, model === 'sectors' ? 'exactly' : 'mixed')
      if (this.judged % options.recoverEvery === 0) {
        const { sizeBytes } = this.model
        const { cluster, unwritable } = subject
        const geometry = { sizeBytes, cluster, unwritable }
        const steps = randomSteps(options.seed + this.judged, 6, geometry)
        try {
          subject.recover(files, steps)
        } catch (error) {
          const { message } = error as Error
          throw new Error(`opened again (${show(steps)}): ${message}`, { cause: error })
        }
      }
    } catch (error) {
      const { message } = error as Error
      const where = `cut before entry ${at} of ${this.journal.length} (${model}${keepsSize ? ', size kept' : ''}): ${replay.describe(choice)}`
      throw new Error(`${message}\n  ${where}`, { cause: error })
    }
    options.sample?.(files)
  }
}
