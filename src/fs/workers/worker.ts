/**
 * A worker thread: a blocking loop over /dev/fuse that reads a request, answers it and writes the reply (device-loop.ts). It
 * uses no promise and no event loop, since each would cost more than the request. One thread may have another task
 * (coherence-service.ts).
 */
import { availableParallelism } from 'node:os'
import { MessagePort, parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import type { LayerSpec } from '../../formats/format.js'
import { type CacheSizes, ViewSet } from '../../image/reading/view-set.js'
import { type QueueMemory, DecompressQueue } from '../../image/reading/decompress-queue.js'
import { servingWorkers, WorkerActivity } from './activity.js'
import { AwaitingLayouts } from './awaiting-layouts.js'
import { Backings } from '../nodes/backings.js'
import { CachedPages, type DiskRange } from '../partitions/cached-pages.js'
import { Coherence, Gaps } from '../partitions/coherence.js'
import { CoherenceService } from '../partitions/coherence-service.js'
import { TextSlots } from '../status/control.js'
import { countRequest, DeviceLoop, send } from './device-loop.js'
import { type Errand, Errands, type ErrandSetup } from './errands.js'
import { GatePass } from './gate.js'
import { ImageFs } from '../protocol/image-fs.js'
import { LookRequests } from '../live/look-requests.js'
import { OldWorlds } from '../live/old-worlds.js'
import { OpenCounts } from '../nodes/open-counts.js'
import { Responder } from '../protocol/opcodes.js'
import { Ownership } from '../nodes/ownership.js'
import { dropPages, PageDropper } from '../writing/page-dropper.js'
import { Passthrough, type PassthroughRules } from '../nodes/passthrough.js'
import { Poller } from './poller.js'
import { changesDisk } from './put-aside.js'
import { OUT_HEADER } from '../protocol/protocol.js'
import {
  faultLogger,
  type LogEntry,
  stallMessage,
  statsText,
  statusText,
} from '../status/diagnostics.js'
import { ScratchDisks } from '../scratch/scratch-disks.js'
import { ScratchFiles } from '../scratch/scratch-files.js'
import { type MailboxSetup, ScratchMailbox, type ScratchMessage } from '../scratch/scratch-mail.js'
import { WorkerStats } from '../status/stats.js'
import type { TablePlace } from '../partitions/partition-files.js'
import { TableWrites } from '../partitions/table-writes.js'
import type { Appearance } from '../nodes/tree.js'
import { Truncations } from '../writing/truncations.js'
import type { WriteBackMount } from '../writing/write-back.js'
import { tornStatus } from '../nodes/torn.js'
import { treeOf } from '../live/tree-of-world.js'
import { watchOf, type World } from '../live/world.js'

/** The data that a worker starts with: plain data and shared memory. */
export interface WorkerSetup {
  readonly index: number
  /** The world that the mount shows when the worker starts. */
  readonly world: World
  /** Brings newer worlds. */
  readonly worlds: MessagePort
  readonly appearance: Appearance
  readonly onlyUids: readonly number[] | undefined
  readonly caches: CacheSizes
  readonly status: Readonly<Record<string, unknown>>
  readonly started: number
  readonly isGrowable: boolean
  readonly writesBack: boolean
  readonly passthrough: PassthroughRules
  readonly shared: {
    readonly stats: SharedArrayBuffer
    readonly slots: SharedArrayBuffer
    /** For Poller. */
    readonly polling: SharedArrayBuffer
    /** For WorkerActivity. */
    readonly activity: SharedArrayBuffer
    /** One for each worker, which writes its replies to the target. */
    readonly queues: readonly QueueMemory[]
    /** For Gate and OpenCounts. */
    readonly gate: SharedArrayBuffer
    readonly opens: SharedArrayBuffer
    /** For Backings. */
    readonly backings: SharedArrayBuffer
    /** For LookRequests; present if others may write the image meanwhile. */
    readonly looks: SharedArrayBuffer | undefined
    /** For Truncations, Ownership and PageDropper. */
    readonly truncations: SharedArrayBuffer
    readonly ownership: SharedArrayBuffer
    readonly pageDrops: SharedArrayBuffer
    /** For CachedPages and TableWrites. */
    readonly pages: SharedArrayBuffer
    readonly tables: SharedArrayBuffer
  }
  /**
   * Present where several files show the same bytes and can be written: where a worker hands over requests. The thread that takes
   * them gets 'taken', and later a port of each worker.
   */
  readonly jobs: MessagePort | 'taken' | undefined
  /** Present where programs write to scratch copies. */
  readonly scratch: MailboxSetup | undefined
  /** Present where programs change snapshots by changing the folder. */
  readonly errands: ErrandSetup | undefined
}

/** The message that makes a worker serve. */
export interface SessionStart {
  /** The descriptor of the mount's /dev/fuse. */
  readonly device: number
  /** The minor version of the protocol that was agreed on. */
  readonly minor: number
  readonly hasPassthrough: boolean
}

/**
 * Messages of a worker to the main thread: 'ready' when it can serve; 'awake' with the first request after a pause; 'served' is
 * the last one.
 */
export type WorkerMessage =
  | { readonly log: LogEntry }
  /** The path of a file that somebody else has changed. */
  | { readonly changed: string }
  | ScratchMessage
  /** Look for snapshots that others have taken or deleted. */
  | 'look'
  | 'overrun'
  | 'tables'
  | { readonly errand: Errand }
  /** The number of a file that is opened and must be laid out first. */
  | { readonly layout: number }
  | 'ready'
  | 'awake'
  | 'help'
  | 'served'

/** How long the page dropper may take to start: the main thread starts it, and the machine may be busy. */
const PAGE_DROPPER_START_MS = 3_000

function run(setup: WorkerSetup): void {
  const stats = new WorkerStats(setup.shared.stats, setup.index)
  const fileSystems = new FileSystems(setup, stats)
  const queue = setup.shared.queues[setup.index] as QueueMemory
  const responder = new Responder(fileSystems.current, faultLogger(log), Buffer.from(queue.target))
  const pass = new GatePass(setup.shared.gate, setup.index, setup.world.number, () => {
    const number = fileSystems.adopt()
    responder.serve(fileSystems.current)
    return number
  })
  const pages = new CachedPages(setup.shared.pages)
  const tables = new TableWrites(setup.shared.tables)
  const placeOf = (nodeid: number) => fileSystems.current.placeOf(nodeid)
  const touchesTable = (range: DiskRange) => fileSystems.touchesTable(range)
  const shared = { responder, pages, tables, gaps: fileSystems.gaps, placeOf, touchesTable }
  const { jobs } = setup
  if (jobs === 'taken') {
    const answer = (message: Buffer) => answerAlone(message, responder, pass, stats)
    const adopt = () => {
      if (!pass.enter()) pass.admit(false, true)
      pass.leave()
    }
    const askTables = () => tell('tables')
    const parts = { ...shared, adopt, answer, send: sendLogged, askTables }
    serveJobs(new CoherenceService(parts), fileSystems)
    return
  }
  parentPort?.once('message', (session: SessionStart) => {
    fileSystems.speak(session)
    const poller = new Poller(setup.shared.polling, setup.index)
    const activity = new WorkerActivity(setup.shared.activity)
    const looks = setup.shared.looks && new LookRequests(setup.shared.looks)
    const coherence = jobs && new Coherence({ ...shared, jobs })
    const { opens } = fileSystems
    const awaiting = new AwaitingLayouts(id => fileSystems.awaitsLayout(id), tell)
    const changes = setup.errands && new Errands(setup.errands, tell)
    const errands = changes ?? (setup.passthrough.why === undefined ? awaiting : undefined)
    const parts = { responder, stats, pass, activity, opens, looks, coherence, errands, log, tell }
    new DeviceLoop(session.device, parts).run(poller)
    tell('served')
    parentPort?.close()
  })
  tell('ready')
}

/**
 * Messages to the thread that takes what workers hand over: 'listed' answers 'tables'; 'end' comes when no worker serves any
 * more.
 */
export type JobsMessage = SessionStart | MessagePort | 'listed' | 'end'

function serveJobs(service: CoherenceService, fileSystems: FileSystems): void {
  parentPort?.on('message', (message: JobsMessage) => {
    if (message instanceof MessagePort) return service.add(message)
    if (message === 'listed') return service.listed()
    if (message !== 'end') {
      fileSystems.speak(message)
      service.begin(message.device)
      return
    }
    service.end()
    tell('served')
    parentPort?.close()
  })
  tell('ready')
}

/** Answers a request, once it may be. Returns the length of the reply. */
function answerAlone(
  message: Buffer,
  responder: Responder,
  pass: GatePass,
  stats: WorkerStats,
): number {
  const started = stats.start()
  if (!pass.enter()) pass.admit(changesDisk(message, message.length), true)
  const bytes = responder.answer(message, message.length)
  pass.leave()
  countRequest(stats, message, responder.reply, bytes, started)
  return bytes
}

const sendLogged = (device: number, reply: Buffer, bytes: number): void => {
  send(device, reply, bytes, log)
}

/** The file system of the world that this thread shows. What belongs to open handles goes from one world to the next. */
class FileSystems {
  current: ImageFs
  readonly opens: OpenCounts
  readonly gaps = new Gaps()
  private readonly oldWorlds = new OldWorlds()
  private world: World
  /** Where partition tables may be, by the number of the disk's file. */
  private tables: ReadonlyMap<number, readonly TablePlace[]> = new Map()
  /** They outlive a world. */
  private scratch: ScratchDisks | undefined
  private session: SessionStart | undefined
  private readonly lasting

  constructor(
    private readonly setup: WorkerSetup,
    private readonly stats: WorkerStats,
  ) {
    const { shared, index, isGrowable, writesBack, onlyUids } = setup
    const queue = shared.queues[index] as QueueMemory
    this.opens = new OpenCounts(shared.opens)
    this.lasting = {
      slots: new TextSlots(shared.slots),
      isGrowable,
      onFlush: () => stats.countFlush(),
      manages: setup.errands !== undefined,
      truncations: new Truncations(shared.truncations, () => tell({ pageDrops: 0 })),
      ownership: new Ownership(shared.ownership),
      opens: this.opens,
      sharesBytes: setup.jobs !== undefined,
      dropPages:
        setup.jobs === undefined
          ? dropPages(new PageDropper(shared.pageDrops), PAGE_DROPPER_START_MS)
          : this.gaps.add,
      pageDropperStartMs: PAGE_DROPPER_START_MS,
      ...(onlyUids && { onlyUids }),
      ...(writesBack && { writeBack: writeBackOf(new PageDropper(shared.pageDrops)) }),
      ...(availableParallelism() > 1 && { queue: decompressQueue(queue) }),
    }
    this.world = setup.world
    this.current = this.of(this.world)
  }

  /** Sets what was agreed with the kernel. */
  speak(session: SessionStart): void {
    this.session = session
    this.current.speak(session.minor, session)
  }

  touchesTable({ disk, from, to }: DiskRange): boolean {
    const places = this.tables.get(disk)
    return places?.some(place => place.from < to && place.to > from) ?? false
  }

  /** Whether those who open the file `id` have to wait until it is laid out. */
  awaitsLayout(id: number): boolean {
    return this.current.awaitsLayout(id)
  }

  /** Takes the newest world that has been sent. Returns its number. */
  adopt(): number {
    const { worlds } = this.setup
    const before = this.world
    for (let sent = receiveMessageOnPort(worlds); sent; sent = receiveMessageOnPort(worlds)) {
      this.world = sent.message
    }
    if (this.world !== before) {
      this.current = this.of(this.world)
      this.oldWorlds.add()
    }
    return this.world.number
  }

  private of(world: World): ImageFs {
    const { setup, stats, session } = this
    const { memory, layers } = world
    const onStall = (seconds: number) => log({ level: 'warn', message: stallMessage(seconds) })
    const writer = { thread: setup.index, onStall }
    const writing = memory && { memory, ...writer }
    this.tables = new Map(
      world.tables.map(({ place, places }) => [world.ids[place] as number, places]),
    )
    // The image below scratch copies never changes.
    const views = this.scratch?.base ?? new ViewSet(layers, setup.caches, stats, writing)
    const { status, started, shared } = setup
    const watch = watchOf(world, changed => tell({ changed }))
    const allocated = new Float64Array(world.allocated)
    const { scratch, caches, jobs } = setup
    const { entries } = world
    this.scratch ??=
      scratch &&
      new ScratchDisks(
        { entries, views, watch, path: (layers[0] as LayerSpec).path, caches, writer },
        new ScratchMailbox(scratch, tell),
      )
    const dropShared = jobs && this.gaps.add
    const files =
      this.scratch &&
      new ScratchFiles({ ...this.lasting, entries, disks: this.scratch, allocated, dropShared })
    const { isGrowable, passthrough: rules } = setup
    const backings = new Backings(shared.backings)
    const passthrough = new Passthrough({ rules, backings, views, layers, isGrowable, watch })
    const tree = treeOf(world, setup.appearance)
    const fileSystem = new ImageFs({
      ...this.lasting,
      tree,
      passthrough,
      views,
      layers,
      watch,
      ...(world.isShared && { onGone: () => tell('look') }),
      allocated,
      ...(files && { files }),
      controlText: {
        status: () =>
          statusText(
            { ...status, ...tornStatus(world), files: passthrough.report(tree.images()) },
            world.snapshots,
            views,
            layers,
            watch,
            files,
          ),
        stats: () => statsText(shared.stats, started, servingWorkers(shared.activity), layers),
        partitions: world.partitions,
      },
    })
    if (session) fileSystem.speak(session.minor, session)
    return fileSystem
  }
}

const writeBackOf = (dropper: PageDropper): WriteBackMount => ({
  get areDropsDone() {
    return dropper.isDone
  },
  onTruncated: () => tell({ pageDrops: 0 }),
  showWhole(sizeBytes, lastByte) {
    const ticket = dropper.ask(0, sizeBytes, { sizeBytes, lastByte })
    dropper.wait(ticket, PAGE_DROPPER_START_MS)
  },
  onOverrun: () => tell('overrun'),
})

/** Joins the helper, which starts with the first compressed cluster: most images have none. */
function decompressQueue(memory: QueueMemory): DecompressQueue {
  const payload = Buffer.from(memory.target).subarray(OUT_HEADER.size)
  return new DecompressQueue(memory, payload, OUT_HEADER.size, () => tell('help'))
}

function log(entry: LogEntry): void {
  tell({ log: entry })
}

function tell(message: WorkerMessage): void {
  parentPort?.postMessage(message)
}

// The build loads this module outside a thread.
if (workerData !== null) run(workerData as WorkerSetup)
