/**
 * A disk that is full for a while.
 *
 * Writes that need room fail with ENOSPC and leave their range as before or as after. Reads, writes in
 * place and flushes go on. Once there is room again, everything works; and nothing has leaked when the
 * image is closed.
 */
import { SystemError } from '../../src/errors.js'
import { FullDiskStore, type Journal, type MemoryStore, RecordingStore } from '../support/stores.js'
import { readDisk } from '../support/writable.js'
import { DiskModel } from './disk-model.js'
import { act, checkReads, isPossible, type Subject } from './scenario.js'
import { Random, randomSteps, show, type Step } from './steps.js'

const RUNS = process.env.VIMGFS_TEST_LONG === '1' ? 400 : 8
const FIRST_SEED = Number(process.env.VIMGFS_TEST_SEED ?? 1)
const STEPS = 40

export interface FullOutcome {
  /** Steps that met the full disk. */
  readonly refused: number
  /** Of them, flushes. */
  readonly refusedFlushes: number
  /** Clusters that leak after the clean close, beyond those that did before. */
  readonly leaks: number
}

/**
 * Runs the steps on a disk that has `roomBytes` at first, and as much as it wants from step `roomAgainAt`
 * on.
 */
export function runFull(
  subject: Subject,
  steps: readonly Step[],
  { roomBytes, roomAgainAt }: { roomBytes: number; roomAgainAt: number },
): FullOutcome {
  try {
    return run(subject, steps, roomBytes, roomAgainAt)
  } catch (error) {
    const where = `${subject.title}, room for ${roomBytes} bytes until step ${roomAgainAt}`
    throw new Error(`${where}: ${(error as Error).message}\n  steps: ${show(steps)}`, {
      cause: error,
    })
  }
}

/** Runs random scenarios on disks with little room; returns what they refused in all. Throws if space leaks. */
export function fillUp(subject: Subject): Pick<FullOutcome, 'refused' | 'refusedFlushes'> {
  const all = { refused: 0, refusedFlushes: 0 }
  for (let seed = FIRST_SEED; seed < FIRST_SEED + RUNS; seed++) {
    const random = new Random(seed)
    const outcome = runFull(subject, randomSteps(seed, STEPS, subject), {
      roomBytes: random.below(Math.min(24, subject.sizeBytes / 16384)) * 4096,
      roomAgainAt: 10 + random.below(20),
    })
    if (outcome.leaks > 0) throw new Error(`seed ${seed}: ${outcome.leaks} leaks`)
    all.refused += outcome.refused
    all.refusedFlushes += outcome.refusedFlushes
  }
  return all
}

function run(
  subject: Subject,
  steps: readonly Step[],
  roomBytes: number,
  roomAgainAt: number,
): FullOutcome {
  const journal: Journal<never> = []
  const files: readonly MemoryStore[] = subject.files.map(base => base.clone())
  const disks = files.map(file => new FullDiskStore(file))
  const stores = disks.map((disk, i) => new RecordingStore(disk, journal, i))
  const model = new DiskModel(subject.disk)
  const opened = subject.open(stores)
  for (const disk of disks) disk.limitBytes = disk.usedBytes + roomBytes
  let refused = 0
  let refusedFlushes = 0
  steps.forEach((step, index) => {
    if (index === roomAgainAt) for (const disk of disks) disk.limitBytes = Number.POSITIVE_INFINITY
    if (step.kind === 'reopen' || !isPossible(step, model.sizeBytes)) return
    if (step.kind !== 'flush') model.begin(step)
    try {
      if (step.kind === 'flush') {
        opened.disk.flush()
        model.flushed()
      } else act(opened, step)
    } catch (error) {
      if (!(error instanceof SystemError) || error.code !== 'ENOSPC' || index >= roomAgainAt) {
        throw new Error(`step ${index}, ${step.kind}: ${(error as Error).stack}`, { cause: error })
      }
      refused++
      if (step.kind === 'flush') refusedFlushes++
      else model.failed(step, readDisk(opened), `after step ${index}, which was refused`)
    }
    if (opened.disk.failure) throw new Error(`step ${index}: read-only: ${opened.disk.failure}`)
    checkReads(opened, model, step)
  })
  for (const disk of disks) disk.limitBytes = Number.POSITIVE_INFINITY
  checkReads(opened, model)
  opened.disk.close()
  model.flushed()
  const { leaks, isDirty } = subject.check(files, model, 'exactly')
  if (isDirty) throw new Error('the image is closed and dirty')
  return { refused, refusedFlushes, leaks: leaks - subject.leaks }
}
