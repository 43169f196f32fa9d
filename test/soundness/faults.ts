/**
 * Makes the nth write or sync of a scenario fail.
 *
 *  (1) The caller gets the errno; or the disk is read-only from then on, and says why.
 *  (2) A write that reported success always reads back. Each byte of a write that failed reads as before
 *      or as after, and stays so.
 *  (3) A flush that returned keeps its promise through a power cut, even if a sync had failed before
 *      it. Writes that a failed sync was asked to store may be lost; a later sync does not store them.
 *  (4) The image is sound: leaks at worst. It can be opened and written again.
 *  (5) When the fault has gone and the disk is not read-only, it goes on working.
 */
import { errnoOf, ImageError, SystemError } from '../../src/errors.js'
import {
  type Fault,
  FaultPlan,
  FaultStore,
  type Journal,
  type MemoryStore,
  RecordingStore,
} from '../support/stores.js'
import { type OpenDisk, readDisk } from '../support/writable.js'
import { DiskModel } from './disk-model.js'
import { randomChoice, Replay } from './replay.js'
import { act, checkReads, isPossible, type Subject } from './scenario.js'
import { Random, randomSteps, show, type Step } from './steps.js'

/** For how many steps a lasting fault goes on. */
const STEPS_UNTIL_HEALED = 4
/** Cuts after each run, from the call on that failed: before it, nothing is other than without a fault. */
const CUTS = 4

export interface Outcome {
  /** Whether the fault struck at all. */
  readonly struck: boolean
  readonly turnedReadOnly: boolean
  /** Whether the last close reported success. */
  readonly closed: boolean
  /** Clusters that leak at the end. */
  readonly leaks: number
}

type Mark =
  | { readonly begun: Step }
  | { readonly flushed: true }
  | { readonly failed: Step; readonly actual: Buffer; readonly isReadOnly: boolean }
  /** Closes it, and opens it again as it is now. */
  | { readonly reopened: Subject }

/** How many calls a fault may strike when all goes well. */
export function callsOf(subject: Subject, steps: readonly Step[]): FaultPlan['counts'] {
  const plan = new FaultPlan()
  new Run(subject, plan).all(steps)
  return plan.counts
}

export function runWithFault(subject: Subject, steps: readonly Step[], fault: Fault): Outcome {
  const plan = new FaultPlan(fault)
  try {
    return new Run(subject, plan, fault).all(steps)
  } catch (error) {
    const { message } = error as Error
    const what = `${subject.title}, ${JSON.stringify(fault)} struck ${plan.failed.join(', ')}`
    throw new Error(`${what}: ${message}\n  steps: ${show(steps)}`, { cause: error })
  }
}

class Run {
  private readonly journal: Journal<Mark> = []
  private readonly files: readonly MemoryStore[]
  private readonly stores: readonly FaultStore[]
  private readonly model: DiskModel
  private hasClosed = false
  /** Where in the journal the step begins that the fault struck first. */
  private struckAt = 0
  private stepsSinceStrike = 0
  private isHealed = false

  /** The image as the last one to open it finds it. */
  private current: Subject

  constructor(
    private readonly subject: Subject,
    private readonly plan: FaultPlan,
    private readonly fault?: Fault,
  ) {
    this.current = subject
    this.files = subject.files.map(base => base.clone())
    this.stores = this.files.map(
      (store, file) => new FaultStore(new RecordingStore(store, this.journal, file), plan),
    )
    this.model = new DiskModel(subject.disk)
  }

  all(steps: readonly Step[]): Outcome {
    const opened = this.tryOpen()
    const turnedReadOnly = opened ? this.steps(opened, steps) : false
    this.plan.heal()
    const verdict = this.current.check(this.files, this.model, 'mixed')
    this.cut()
    this.subject.recover(this.files, randomSteps(this.fault?.nth ?? 0, 6, this.subject))
    const struck = this.plan.failed.length > 0
    return { struck, turnedReadOnly, closed: this.hasClosed, leaks: verdict.leaks }
  }

  private tryOpen(): OpenDisk | undefined {
    try {
      return this.subject.open(this.stores)
    } catch (error) {
      // Opening reports in its own words that it could not recover an image; the fault is its cause.
      const cause = error instanceof ImageError ? error.cause : undefined
      this.expected(cause instanceof SystemError ? cause : error, 'opening')
      return undefined
    }
  }

  /** Whether it turned read-only. */
  private steps(first: OpenDisk, steps: readonly Step[]): boolean {
    let opened = first
    for (const step of steps) {
      if (!isPossible(step, this.model.sizeBytes)) continue
      this.maybeHeal()
      if (this.plan.failed.length === 0) this.struckAt = this.journal.length
      if (step.kind === 'reopen') {
        // A program that opens it after a failed sync may read bytes that never reach the disk, and cannot know it.
        if (this.hasSyncFailed) break
        if (!this.close(opened)) return opened.disk.failure !== ''
        // Closing a disk after a failure brings nothing more to the file.
        if (opened.disk.failure === '') {
          this.current = this.current.reopened(this.files)
          this.mark({ reopened: this.current })
        }
        const again = this.tryOpen()
        if (!again) return false
        opened = again
      } else if (step.kind === 'flush') this.flush(opened)
      else this.change(opened, step)
      checkReads(opened, this.model, step)
    }
    checkReads(opened, this.model)
    this.close(opened)
    return opened.disk.failure !== ''
  }

  private get hasSyncFailed(): boolean {
    return this.plan.failed.some(call => call.startsWith('sync'))
  }

  private maybeHeal(): void {
    if (this.plan.failed.length === 0 || this.stepsSinceStrike++ < STEPS_UNTIL_HEALED) return
    this.plan.heal()
    this.isHealed = true
  }

  private flush({ disk }: OpenDisk): void {
    const wasReadOnly = disk.failure !== ''
    try {
      disk.flush()
    } catch (error) {
      this.expected(error, 'flush', disk.failure, wasReadOnly)
      return
    }
    this.flushed()
  }

  private flushed(): void {
    this.model.flushed()
    this.mark({ flushed: true })
  }

  private mark(mark: Mark): void {
    this.journal.push({ kind: 'mark', mark })
  }

  private close({ disk }: OpenDisk): boolean {
    const wasReadOnly = disk.failure !== ''
    this.hasClosed = false
    try {
      disk.close()
    } catch (error) {
      this.expected(error, 'close', disk.failure, wasReadOnly)
      return false
    }
    this.flushed()
    this.hasClosed = true
    return true
  }

  private change(opened: OpenDisk, step: Step): void {
    const { disk } = opened
    const wasReadOnly = disk.failure !== ''
    if (wasReadOnly) {
      try {
        act(opened, step)
      } catch (error) {
        this.expected(error, step.kind, disk.failure, wasReadOnly)
        return
      }
      throw new Error(`${step.kind} passes, and the disk is read-only: ${disk.failure}`)
    }
    this.model.begin(step)
    this.mark({ begun: step })
    try {
      act(opened, step)
    } catch (error) {
      this.expected(error, step.kind, disk.failure)
      const actual = readDisk(opened)
      const isReadOnly = disk.failure !== ''
      this.model.failed(step, actual, `after a failed ${step.kind}`, isReadOnly)
      this.mark({ failed: step, actual, isReadOnly })
    }
  }

  /** rule (1), rule (5) */
  private expected(error: unknown, what: string, failure = '', wasReadOnly = false): void {
    if (this.plan.failed.length === 0) throw error
    const isReadOnly = error instanceof ImageError && error.code === 'READ_ONLY' && failure !== ''
    if (wasReadOnly ? isReadOnly : errnoOf(error) === this.fault?.errno || isReadOnly) {
      if (!this.isHealed || isReadOnly || failure !== '') return
      throw new Error(`${what} fails after all was healed: ${(error as Error).message}`)
    }
    throw new Error(`${what} throws ${(error as Error).stack}, failure "${failure}"`)
  }

  /** rule (3) */
  private cut(): void {
    const random = new Random(this.fault?.nth ?? 0)
    let { subject } = this
    const model = new DiskModel(subject.disk)
    const replay = new Replay<Mark>(this.journal, subject.files, mark => {
      if ('begun' in mark) model.begin(mark.begun)
      else if ('reopened' in mark) subject = mark.reopened
      else if ('failed' in mark) model.failed(mark.failed, mark.actual, 'again', mark.isReadOnly)
      else model.flushed()
    })
    const end = this.journal.length
    const places = Array.from(
      { length: CUTS - 2 },
      () => this.struckAt + random.below(end - this.struckAt + 1),
    )
    places.push(end, end)
    places.sort((a, b) => a - b)
    places.forEach((place, index) => {
      replay.advance(place)
      const isLast = index === places.length - 1
      const choice = isLast ? () => false : randomChoice(random, Math.max(1, replay.pending))
      const files = replay.cut(choice, 'calls', false)
      try {
        subject.check(files, model, 'mixed')
      } catch (error) {
        const where = `cut before entry ${place} of ${this.journal.length}: ${replay.describe(choice)}`
        throw new Error(`${(error as Error).message}\n  ${where}`, { cause: error })
      }
    })
  }
}
