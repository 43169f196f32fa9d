/**
 * Cuts the power, or makes a call fail, while a command changes image files in place. The command runs as a whole on files in a
 * folder; all that it writes goes through the stores of OPENED_FILES, which record it or fail here.
 */
import { cpSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { basename, join } from 'node:path'
import { SystemError } from '../../src/errors.js'
import { OPENED_FILES } from '../../src/image/opening/store-source.js'
import type { WritableStore } from '../../src/io/store.js'
import {
  type Fault,
  FaultPlan,
  FaultStore,
  type Journal,
  MemoryStore,
  RecordingStore,
} from '../support/stores.js'
import { randomChoice, Replay } from './replay.js'
import { Random } from './steps.js'

export interface ImageChange {
  readonly title: string
  /** The folder with the files as they are before. */
  readonly folder: string
  /** Makes the change to the files in another folder. */
  run(folder: string): Promise<{ readonly warnings: readonly string[] }>
  /** Returns which state the files in a folder have. Throws if they have neither. */
  stateOf(folder: string): Promise<'before' | 'after'>
}

type Wrap = (store: WritableStore, file: string) => WritableStore

export interface ChangeCutOptions {
  readonly seed: number
  /** Cuts at random before each call. */
  readonly perPlace: number
  /** At most so many places are cut. */
  readonly places: number
  /** Stands between the change and the file: a flaw that must be noticed. */
  readonly flaw?: Wrap
  readonly sample?: (folder: string) => Promise<void>
  /** One of so many cuts is sampled. */
  readonly sampleEvery?: number
  /** After one of so many cuts, the change is made again. */
  readonly againEvery?: number
}

/** Runs `act` while all files that it writes are wrapped. */
export async function wrappingWrites<T>(wrap: Wrap, act: () => Promise<T>): Promise<T> {
  const { writable } = OPENED_FILES
  OPENED_FILES.writable = (file, size) =>
    wrap(writable.call(OPENED_FILES, file, size), basename(file.path))
  try {
    return await act()
  } finally {
    OPENED_FILES.writable = writable
  }
}

function freshCopy(folder: string, name: string): string {
  const copy = `${folder}.${name}`
  rmSync(copy, { recursive: true, force: true })
  cpSync(folder, copy, { recursive: true })
  return copy
}

/** Returns how many cuts it judged, and how many of them left the new state. Throws for the first that is wrong. */
export async function cutChange(
  change: ImageChange,
  options: ChangeCutOptions,
): Promise<{ judged: number; after: number }> {
  const { flaw = store => store } = options
  const names = readdirSync(change.folder).toSorted()
  const journal: Journal<never> = []
  const whole = freshCopy(change.folder, 'whole')
  const record: Wrap = (store, name) =>
    flaw(new RecordingStore(store, journal, names.indexOf(name)), name)
  await wrappingWrites(record, () => change.run(whole))
  if ((await change.stateOf(whole)) !== 'after') throw new Error(`${change.title}: nothing changed`)
  const bases = names.map(name => new MemoryStore(name, readFileSync(join(change.folder, name))))
  return new Cutter(change, names, journal, new Replay(journal, bases, () => {}), options).run()
}

class Cutter {
  private readonly random: Random
  private readonly target: string
  private judged = 0
  private after = 0

  constructor(
    private readonly change: ImageChange,
    private readonly names: readonly string[],
    private readonly journal: Journal<never>,
    private readonly replay: Replay<never>,
    private readonly options: ChangeCutOptions,
  ) {
    this.random = new Random(options.seed)
    this.target = `${change.folder}.cut`
  }

  async run(): Promise<{ judged: number; after: number }> {
    const { journal, options, random, replay } = this
    const stride = Math.max(1, Math.ceil(journal.length / options.places))
    for (let at = 0; at <= journal.length; at++) {
      replay.advance(at)
      const isSync = journal[at]?.kind === 'sync' && journal[at - 1]?.kind !== 'sync'
      if (!isSync && at % stride !== 0 && at !== journal.length) continue
      const count = replay.pending
      await this.cut(at, () => true)
      if (count === 0) continue
      await this.cut(at, i => i === count - 1)
      await this.cut(at, (_, sector) => sector === 0)
      await this.cut(at, (i, sector) => i < count - 1 || sector > 0)
      for (let i = 0; i < options.perPlace; i++) await this.cut(at, randomChoice(random, count))
    }
    rmSync(this.target, { recursive: true, force: true })
    return { judged: this.judged, after: this.after }
  }

  private async cut(at: number, choice: ReturnType<typeof randomChoice>): Promise<void> {
    const { change, options, random, replay, target } = this
    const model = random.chance(0.5) ? 'sectors' : 'calls'
    const files = replay.cut(choice, model, random.chance(0.2))
    mkdirSync(target, { recursive: true })
    files.forEach((file, i) => {
      writeFileSync(join(target, this.names[i] as string), file.bytes())
    })
    this.judged++
    try {
      const state = await change.stateOf(target)
      if (state === 'after') this.after++
      if (this.judged % (options.sampleEvery ?? 1) === 0) await options.sample?.(target)
      if (state === 'before' && this.judged % (options.againEvery ?? 8) === 0) {
        await again(change, target)
      }
    } catch (error) {
      const where = `${change.title}, cut before call ${at} of ${this.journal.length}`
      const what = `${where}: ${(error as Error).message}\n  ${replay.describe(choice)}`
      throw new Error(what, { cause: error })
    }
  }
}

async function again(change: ImageChange, folder: string): Promise<void> {
  await change.run(folder)
  if ((await change.stateOf(folder)) !== 'after') throw new Error('made again, it has no effect')
}

export const EIO = 5
/** A write that finds no room is tried again, after freed space was given back: the change may succeed. */
const ENOSPC = 28

/**
 * Makes call after call fail, `most` of them at most. Throws unless the change reports it, the files have one of the two
 * states, and the change succeeds when it is made again. Returns how many calls failed.
 */
export async function failChange(change: ImageChange, most: number): Promise<number> {
  const plan = new FaultPlan()
  const counted = freshCopy(change.folder, 'counted')
  await wrappingWrites(
    store => new FaultStore(store, plan),
    () => change.run(counted),
  )
  const all = plan.counts.write + plan.counts.sync + plan.counts.truncate
  const stride = Math.max(1, Math.ceil(all / most))
  let struck = 0
  for (let nth = 0; nth < all; nth += stride) {
    const calls = ['write', 'sync', 'truncate'] as const
    const fault = { nth, calls, persists: nth % 2 === 1, part: (nth % 4) / 4 }
    await fail(change, { ...fault, errno: EIO })
    if (nth % (2 * stride) === 0) await fail(change, { ...fault, calls: ['write'], errno: ENOSPC })
    struck++
  }
  return struck
}

async function fail(change: ImageChange, fault: Fault): Promise<void> {
  const folder = freshCopy(change.folder, 'failed')
  const plan = new FaultPlan(fault)
  const where = `${change.title}, ${JSON.stringify(fault)}`
  try {
    let warnings: readonly string[] = []
    const problem = await wrappingWrites(
      store => new FaultStore(store, plan),
      () =>
        change.run(folder).then(
          done => void ({ warnings } = done),
          error => error as Error,
        ),
    )
    // A bitmap that could not be kept is a warning.
    const isTold = problem !== undefined || warnings.length > 0
    if (!isTold && (fault.errno === EIO || (await change.stateOf(folder)) !== 'after')) {
      throw new Error('it reports success')
    }
    if (problem && !(problem instanceof SystemError) && !('code' in problem)) throw problem
    if ((await change.stateOf(folder)) === 'before') await again(change, folder)
  } catch (error) {
    const struck = plan.failed.join(', ')
    throw new Error(`${where} struck ${struck}: ${(error as Error).message}`, { cause: error })
  }
}
