/**
 * The worker threads of a mount, as the main thread has them.
 *
 *  (1) One worker serves at first. Another one starts when requests have to wait for it (crowding.ts), up to the number that
 *      the user allows: starting one takes 0.1 s of a processor and 13 MiB, and most mounts never need it.
 *  (2) A worker that starts later gets the newest world. All else that has changed since is in shared memory or in the file. Its
 *      places in shared memory are there from the beginning.
 *  (3) What prevents a later start does no harm: the mount goes on with the workers that it has.
 */
import { constants } from 'node:os'
import { setTimeout as sleep } from 'node:timers/promises'
import { MessageChannel, type MessagePort, Worker } from 'node:worker_threads'
import { inWords, MountError } from '../../errors.js'
import type { LayerSpec } from '../../formats/format.js'
import { queueMemories } from '../../image/reading/decompress-queue.js'
import { isReadyToRead } from '../../io/libc.js'
import type { Logger } from '../../log.js'
import { Activity, createActivityMemory } from './activity.js'
import { CachedPages } from '../partitions/cached-pages.js'
import { TextSlots } from '../status/control.js'
import { Crowding } from './crowding.js'
import type { HelperSetup } from './decompress-helper.js'
import type { Errand, ErrandResult } from './errands.js'
import { Layouts } from './layouts.js'
import { OwnCode } from '../own-code.js'
import { Ownership } from '../nodes/ownership.js'
import { PageDropper } from '../writing/page-dropper.js'
import { createPollMemory } from './poller.js'
import { REPLY_BYTES } from '../protocol/protocol.js'
import {
  DESCRIPTORS_A_WORKER,
  DESCRIPTORS_TO_SERVE,
  requireDescriptors,
  requireThreadMemory,
  whyNoProcess,
} from '../mounting/rlimits.js'
import { ScratchMail } from '../scratch/scratch-mail.js'
import type { SessionParts } from '../session.js'
import { startPageDropper } from '../writing/start-page-dropper.js'
import { Truncations } from '../writing/truncations.js'
import type { JobsMessage, SessionStart, WorkerMessage, WorkerSetup } from './worker.js'
import type { World } from '../live/world.js'

/** How long a thread may take to load what it needs. */
const READY_TIMEOUT_MS = 30_000
/** How long a terminated thread may take to end. If threads are scarce it may hang. */
const END_TIMEOUT_MS = 2_000
/** How long to wait after a worker could not be started before the next try. */
const RETRY_MS = 60_000

type CommonSetup = Omit<WorkerSetup, 'index' | 'worlds' | 'scratch' | 'jobs' | 'errands'>

export class Workers {
  /** Settles when the last request has been served. */
  readonly finished: Promise<void>
  private setup: CommonSetup
  private readonly scratchMail: ScratchMail | undefined
  /** They take new worlds to the workers. */
  private readonly worlds = new Map<Worker, MessagePort>()
  private readonly threads = new Set<Worker>()
  /** Takes what workers hand over, where several files show the same bytes. */
  private coherence: Worker | undefined
  private readonly activity: Activity
  private readonly code = new OwnCode(new URL('./worker.bundle.cjs', import.meta.url))
  private readonly numbers = new Map<Worker, number>()
  private finish: () => void = () => {}
  private session: SessionStart | undefined
  private hasFinished = false
  private starting: Promise<void> | undefined
  private helper: Worker | undefined
  /** The places of the files that have a thread which drops their pages. */
  private readonly dropping = new Set<number>()
  private hasComplained = false
  private crowding: Crowding | undefined
  private readonly layouts: Layouts

  /** @param onDeath called if a worker dies that may have been writing */
  constructor(
    private readonly parts: SessionParts,
    private readonly onDeath: () => void,
  ) {
    this.setup = setupOf(parts)
    const { backings, passthrough, logger, onChanged } = parts
    const { copiedBytes } = passthrough
    const current = () => this.setup.world
    this.layouts = new Layouts({ backings, copiedBytes, logger, onChanged, world: current })
    const { scratch, world } = parts
    this.scratchMail = scratch && new ScratchMail(world.entries.length, scratch)
    this.activity = new Activity(this.setup.shared.activity, parts.gate)
    this.finished = new Promise(resolve => {
      this.finish = () => {
        this.hasFinished = true
        this.crowding?.end()
        if (!this.coherence) return resolve()
        this.coherence.on('message', message => message === 'served' && resolve())
        this.coherence.once('exit', () => resolve())
        this.coherence.postMessage('end' satisfies JobsMessage)
      }
    })
  }

  /** Starts the first worker. Resolves when it can serve. Throws MountError. */
  async prepare(): Promise<void> {
    const { sharesBytes, threads } = this.parts
    if (sharesBytes) this.coherence = this.launch(threads - 1, 'taken')
    await Promise.all([this.coherence, this.start()].map(each => each && untilReady(each)))
  }

  /** Makes the first worker serve. */
  serve(session: SessionStart): void {
    this.session = session
    const { device } = session
    const hasRequests = () => isReadyToRead(device, 0)
    this.coherence?.postMessage(session satisfies JobsMessage)
    this.crowding = new Crowding(this.activity, hasRequests, () => void this.startAnother())
    const [first] = this.threads
    this.serveBy(first as Worker)
  }

  /** Makes all workers show `world` from their next request on. */
  show(world: World): void {
    this.setup = { ...this.setup, world }
    for (const port of this.worlds.values()) port.postMessage(world)
  }

  /** Makes the helper, if there is one, read the files of the newest world. No worker has a job for it. */
  async renewHelper(): Promise<void> {
    if (!this.helper) return
    await this.helper.terminate()
    this.helper = startHelper(this.setup, this.parts.logger)
  }

  /** Ends workers that do not serve yet. */
  async end(): Promise<void> {
    this.hasFinished = true
    const late = sleep(END_TIMEOUT_MS, undefined, { ref: false })
    const all = [...this.threads, ...(this.coherence ? [this.coherence] : [])]
    await Promise.race([Promise.all(all.map(worker => worker.terminate())), late])
  }

  private serveBy(worker: Worker): void {
    this.numbers.set(worker, this.activity.add())
    worker.postMessage(this.session)
    if (!this.canGrow) this.crowding?.end()
  }

  private get canGrow(): boolean {
    const { threads, sharesBytes } = this.parts
    return this.numbers.size < threads - Number(sharesBytes)
  }

  /** Starts one more worker, rule (1). Never throws: rule (3). */
  private startAnother(): Promise<void> {
    this.starting ??= this.tryAnother().finally(() => {
      this.starting = undefined
    })
    return this.starting
  }

  private async tryAnother(): Promise<void> {
    let worker: Worker | undefined
    try {
      await this.code.requireUnchanged()
      requireDescriptors(DESCRIPTORS_A_WORKER + DESCRIPTORS_TO_SERVE)
      requireThreadMemory()
      worker = this.start()
      await untilReady(worker)
      // It may have been replaced while the thread read it.
      await this.code.requireUnchanged()
      if (this.hasFinished) {
        await worker.terminate()
        return
      }
      this.serveBy(worker)
      const { logger } = this.parts
      logger.debug(
        { threads: this.activity.serving },
        'requests have waited: one more thread serves',
      )
      this.crowding?.goOn()
    } catch (error) {
      worker?.terminate().catch(() => {})
      this.complain(error as Error)
      setTimeout(() => this.crowding?.goOn(), RETRY_MS).unref()
    }
  }

  /** Logs one line, however often it is tried. */
  private complain({ message }: Error): void {
    if (this.hasComplained || this.hasFinished) return
    this.hasComplained = true
    const { logger, threads } = this.parts
    const detail = { why: message, serving: this.activity.serving, threads }
    logger.warn(detail, 'requests wait, and no other thread can be started')
  }

  /** Starts a worker. Throws MountError if the system cannot. */
  private start(): Worker {
    const jobs = this.coherence && new MessageChannel()
    if (jobs) this.coherence?.postMessage(jobs.port2 satisfies JobsMessage, [jobs.port2])
    const worker = this.launch(this.numbers.size, jobs?.port1)
    this.threads.add(worker)
    worker.once('exit', () => void this.leave(worker, false))
    return worker
  }

  /** Starts a thread. Throws MountError if the system cannot. */
  private launch(index: number, jobs: WorkerSetup['jobs']): Worker {
    const { logger, onChanged, onLook } = this.parts
    const { port1, port2 } = new MessageChannel()
    port1.unref()
    const scratch = this.scratchMail?.mailbox()
    const results = this.parts.changeTree && new MessageChannel()
    results?.port1.unref()
    const errands = results && { port: results.port2, uid: process.geteuid?.() ?? 0 }
    const worker = newWorker({ ...this.setup, index, worlds: port2, scratch, jobs, errands })
    this.worlds.set(worker, port1)
    worker.on('message', (message: WorkerMessage) => {
      if (message === 'awake') this.crowding?.begin()
      else if (message === 'look') void onLook()
      else if (message === 'tables') void this.list()
      else if (message === 'overrun') this.parts.onOverrun()
      else if (message === 'served') void this.leave(worker, true)
      else if (message === 'help') {
        this.helper ??= startHelper(this.setup, logger)
      } else if (typeof message !== 'object') return
      else if ('pageDrops' in message) this.dropPages(message.pageDrops)
      else if ('scratch' in message) this.makeScratch(message.scratch)
      else if ('errand' in message) void this.changeTree(message.errand, results?.port1)
      else if ('layout' in message) this.layouts.begin(message.layout, this.session?.device ?? -1)
      else if ('changed' in message) onChanged(message.changed)
      else logger[message.log.level](message.log.detail ?? {}, message.log.message)
    })
    worker.on('error', error => {
      // The caller that waits for it sees the error, and nothing has changed.
      if (!this.numbers.has(worker) && worker !== this.coherence) return
      logger.fatal({ stack: error.stack ?? String(error) }, 'a worker has died')
      if (this.setup.world.memory || this.scratchMail) this.onDeath()
    })
    return worker
  }

  /**
   * A worker is done when it has served its last request; how its thread ends does not matter. If it ends before, it has died,
   * and another one may take its place.
   */
  private async leave(worker: Worker, hasServed: boolean): Promise<void> {
    this.worlds.delete(worker)
    const number = this.numbers.get(worker)
    if (!this.threads.delete(worker) || number === undefined) return
    this.activity.remove(number)
    if (!hasServed) this.parts.gate.abandon(number)
    if (this.activity.serving > 0 || this.hasFinished) return
    if (!hasServed && this.canGrow) await this.startAnother()
    if (this.activity.serving === 0) this.finish()
  }

  private async list(): Promise<void> {
    await this.parts.onTables()
    this.coherence?.postMessage('listed' satisfies JobsMessage)
  }

  private dropPages(place: number): void {
    const { scratch, world, logger } = this.parts
    const shared = scratch ? scratch.find(place)?.pageDrops : this.setup.shared.pageDrops
    if (this.dropping.has(place) || !this.session || !shared) return
    this.dropping.add(place)
    const { device } = this.session
    void startPageDropper({ shared, device, node: world.ids[place] as number }, error =>
      logger.error({ stack: error.stack }, 'the thread that drops pages has died'),
    )
  }

  private async changeTree({ number, change }: Errand, port: MessagePort | undefined) {
    const errno = (await this.parts.changeTree?.(change)) ?? constants.errno.EROFS
    port?.postMessage({ number, errno } satisfies ErrandResult)
  }

  private makeScratch(place: number): void {
    const failure = this.scratchMail?.answer(place)
    if (failure === undefined) return
    this.parts.logger.error({ why: inWords(failure) }, 'a scratch file could not be made')
  }
}

function newWorker(setup: WorkerSetup): Worker {
  try {
    return new Worker(new URL('./worker.cjs', import.meta.url), {
      workerData: setup,
      transferList: [
        setup.worlds,
        ...(setup.scratch ? [setup.scratch.port] : []),
        ...(typeof setup.jobs === 'object' ? [setup.jobs] : []),
        ...(setup.errands ? [setup.errands.port] : []),
      ],
      // A worker's objects die young; most of its memory is in buffers outside the heap.
      resourceLimits: { maxYoungGenerationSizeMb: 8 },
    })
  } catch {
    // EAGAIN of pthread_create(3), which Node reports in words of its own.
    throw new MountError(`a thread could not be started: ${whyNoProcess()}`)
  }
}

/** Returns what all workers start with. */
function setupOf(parts: SessionParts): CommonSetup {
  const { world, gate, opens, looks, stats, threads } = parts
  const { appearance, onlyUids, caches, status, started, isGrowable, passthrough, writesBack } =
    parts
  const shared: WorkerSetup['shared'] = {
    stats,
    opens,
    backings: parts.backings.shared,
    looks: looks?.shared,
    gate: gate.shared,
    slots: new TextSlots().shared,
    polling: createPollMemory(),
    activity: createActivityMemory(),
    queues: queueMemories(threads, REPLY_BYTES),
    truncations: new Truncations().shared,
    ownership: new Ownership().shared,
    pageDrops: new PageDropper().shared,
    pages: new CachedPages().shared,
    tables: parts.tables.shared,
  }
  const plain = {
    appearance,
    onlyUids,
    caches,
    status,
    started,
    isGrowable,
    passthrough,
    writesBack,
  }
  return { world, ...plain, shared }
}

function untilReady(worker: Worker): Promise<void> {
  return new Promise((resolve, reject) => {
    worker.on('message', (message: WorkerMessage) => {
      if (message !== 'ready') return
      clearTimeout(timer)
      resolve()
    })
    const fail = (why: string) => {
      clearTimeout(timer)
      reject(new MountError(`a thread could not be started: ${why}`))
    }
    const timer = setTimeout(() => fail('it does not answer'), READY_TIMEOUT_MS)
    worker.once('error', error => fail(error instanceof Error ? error.message : String(error)))
    worker.once('exit', () => fail('it has ended'))
  })
}

/** Starts the helper. It runs until the process ends, and does not keep the process alive. */
function startHelper(
  { shared, world }: Pick<WorkerSetup, 'shared' | 'world'>,
  logger: Logger,
): Worker {
  const helper = new Worker(new URL('./decompress-helper.js', import.meta.url), {
    // Compressed clusters are not encrypted, so the helper needs no keys.
    workerData: {
      queues: shared.queues,
      layers: world.layers.map(({ encryption: _, ...layer }: LayerSpec) => layer),
    } satisfies HelperSetup,
    resourceLimits: { maxYoungGenerationSizeMb: 4 },
  })
  helper.unref()
  // Then the workers decompress alone.
  helper.on('error', error => logger.error({ stack: error.stack }, 'the helper has died'))
  return helper
}
