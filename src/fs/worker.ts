/**
 * A worker thread: a blocking loop over /dev/fuse that reads a request, answers it and writes the reply. It uses no promise
 * and no event loop, since each would cost more than the request.
 */
import fs from 'node:fs'
import { availableParallelism, constants } from 'node:os'
import { type MessagePort, parentPort, receiveMessageOnPort, workerData } from 'node:worker_threads'
import { u64le } from '../binary.js'
import { errnoName } from '../errors.js'
import type { LayerSpec } from '../formats/format.js'
import { type CacheSizes, ViewSet } from '../image/view-set.js'
import { type QueueMemory, DecompressQueue } from '../image/decompress-queue.js'
import { cloneDevice, errno, isReadyToRead, read, write } from '../io/libc.js'
import { servingWorkers, WorkerActivity } from './activity.js'
import { TextSlots } from './control.js'
import { GatePass } from './gate.js'
import { ImageFs } from './image-fs.js'
import { LookRequests } from './look-requests.js'
import { OpenCounts } from './open-counts.js'
import { Responder } from './opcodes.js'
import { Ownership } from './ownership.js'
import { dropPages, PageDropper } from './page-dropper.js'
import { Poller } from './poller.js'
import { changesDisk, PutAside } from './put-aside.js'
import { IN_HEADER, MESSAGE_BYTES, OPCODE, OUT_HEADER, WRITE_OUT } from './protocol.js'
import { faultLogger, type LogEntry, stallMessage, statsText, statusText } from './diagnostics.js'
import { ScratchFiles } from './scratch-files.js'
import { type MailboxSetup, ScratchMailbox, type ScratchMessage } from './scratch-mail.js'
import { WorkerStats } from './stats.js'
import type { Appearance } from './tree.js'
import { Truncations } from './truncations.js'
import { tornStatus } from './torn.js'
import { treeOf } from './tree-of-world.js'
import { watchOf, type World } from './world.js'

/** The data that a worker starts with: plain data and shared memory. */
export interface WorkerSetup {
  readonly index: number
  /** What the mount shows when the worker starts. */
  readonly world: World
  /** Brings newer worlds. */
  readonly worlds: MessagePort
  readonly appearance: Appearance
  readonly onlyUids: readonly number[] | undefined
  readonly caches: CacheSizes
  readonly status: Readonly<Record<string, unknown>>
  readonly started: number
  readonly isGrowable: boolean
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
    /** For LookRequests; present if others may write the image meanwhile. */
    readonly looks: SharedArrayBuffer | undefined
    /** For Truncations, Ownership and PageDropper. */
    readonly truncations: SharedArrayBuffer
    readonly ownership: SharedArrayBuffer
    readonly pageDrops: SharedArrayBuffer
  }
  /** Present where programs write to scratch copies. */
  readonly scratch: MailboxSetup | undefined
}

/** The message that makes a worker serve. */
export interface SessionStart {
  /** The descriptor of the mount's /dev/fuse. */
  readonly device: number
  /** The minor version of the protocol that was agreed on. */
  readonly minor: number
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
  | 'ready'
  | 'awake'
  | 'help'
  | 'served'

/** How long the page dropper may take to start: the main thread starts it, and the machine may be busy. */
const PAGE_DROPPER_START_MS = 3_000
const { EAGAIN, ECONNABORTED, EINTR, ENODEV, ENOENT } = constants.errno

/** How long to wait for a request while others are put aside, in milliseconds. */
const ASIDE_MS = 1

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
  parentPort?.once('message', ({ device, minor }: SessionStart) => {
    fileSystems.speak(minor)
    const poller = new Poller(setup.shared.polling, setup.index)
    const activity = new WorkerActivity(setup.shared.activity)
    const { looks } = setup.shared
    const requests = looks && new LookRequests(looks)
    const { opens } = fileSystems
    const service = new Service(device, responder, stats, pass, activity, opens, requests)
    service.run(poller)
    tell('served')
    parentPort?.close()
  })
  tell('ready')
}

/** The file system of the world that this thread shows. What belongs to open handles goes from one world to the next. */
class FileSystems {
  current: ImageFs
  readonly opens: OpenCounts
  private world: World
  private minor: number | undefined
  private readonly lasting

  constructor(
    private readonly setup: WorkerSetup,
    private readonly stats: WorkerStats,
  ) {
    const { shared, index, isGrowable, onlyUids } = setup
    const queue = shared.queues[index] as QueueMemory
    this.opens = new OpenCounts(shared.opens)
    this.lasting = {
      slots: new TextSlots(shared.slots),
      isGrowable,
      onFlush: () => stats.countFlush(),
      truncations: new Truncations(shared.truncations, () => tell({ pageDrops: 0 })),
      ownership: new Ownership(shared.ownership),
      opens: this.opens,
      dropPages: dropPages(new PageDropper(shared.pageDrops), PAGE_DROPPER_START_MS),
      pageDropperStartMs: PAGE_DROPPER_START_MS,
      ...(onlyUids && { onlyUids }),
      ...(availableParallelism() > 1 && { queue: decompressQueue(queue) }),
    }
    this.world = setup.world
    this.current = this.of(this.world)
  }

  /** Sets the minor version of the protocol, as agreed with the kernel. */
  speak(minor: number): void {
    this.minor = minor
    this.current.speak(minor)
  }

  /** Takes the newest world that has been sent. Returns its number. */
  adopt(): number {
    const { worlds } = this.setup
    const before = this.world
    for (let sent = receiveMessageOnPort(worlds); sent; sent = receiveMessageOnPort(worlds)) {
      this.world = sent.message
    }
    if (this.world !== before) this.current = this.of(this.world)
    return this.world.number
  }

  private of(world: World): ImageFs {
    const { setup, stats, minor } = this
    const { memory, layers } = world
    const onStall = (seconds: number) => log({ level: 'warn', message: stallMessage(seconds) })
    const writer = { thread: setup.index, onStall }
    const writing = memory && { memory, ...writer }
    const views = new ViewSet(layers, setup.caches, stats, writing)
    const { status, started, shared } = setup
    const watch = watchOf(world, changed => tell({ changed }))
    const allocated = new Float64Array(world.allocated)
    const { scratch, caches } = setup
    const files =
      scratch &&
      new ScratchFiles(
        { ...this.lasting, entries: world.entries, views, allocated, caches, writer },
        new ScratchMailbox(scratch, tell),
      )
    const fileSystem = new ImageFs({
      ...this.lasting,
      tree: treeOf(world, setup.appearance),
      views,
      layers,
      watch,
      ...(world.isShared && { onGone: () => tell('look') }),
      allocated,
      ...(files && { files }),
      controlText: {
        status: () =>
          statusText(
            { ...status, ...tornStatus(world) },
            world.snapshots,
            views,
            layers[0] as LayerSpec,
            watch,
            files,
          ),
        stats: () => statsText(shared.stats, started, servingWorkers(shared.activity)),
        partitions: world.partitions,
      },
    })
    if (minor !== undefined) fileSystem.speak(minor)
    return fileSystem
  }
}

/** Joins the helper, which starts with the first compressed cluster: most images have none. */
function decompressQueue(memory: QueueMemory): DecompressQueue {
  const payload = Buffer.from(memory.target).subarray(OUT_HEADER.size)
  return new DecompressQueue(memory, payload, OUT_HEADER.size, () => tell('help'))
}

/**
 * Opens the devices of a worker: one to sleep on and one to ask without waiting. A reply must go to the device that its request
 * came from. If the kernel does not allow cloning, all workers share `session`, and there is none to ask.
 */
function openDevices(session: number): { sleeping: number; asking: number } {
  const { O_RDWR, O_NONBLOCK } = fs.constants
  const clone = (flags: number) => {
    let fd: number
    try {
      fd = fs.openSync('/dev/fuse', O_RDWR | flags)
    } catch {
      return -1
    }
    if (cloneDevice(fd, session)) return fd
    fs.closeSync(fd)
    return -1
  }
  const sleeping = clone(0)
  return { sleeping: sleeping < 0 ? session : sleeping, asking: clone(O_NONBLOCK) }
}

/** Reads requests and answers them until the mount is gone. */
class Service {
  private readonly message = Buffer.allocUnsafeSlow(MESSAGE_BYTES)
  private readonly sleeping: number
  private readonly asking: number
  private readonly aside = new PutAside()

  constructor(
    session: number,
    private readonly responder: Responder,
    private readonly stats: WorkerStats,
    private readonly pass: GatePass,
    private readonly activity: WorkerActivity,
    private readonly opens: OpenCounts,
    private readonly looks: LookRequests | undefined,
  ) {
    const { sleeping, asking } = openDevices(session)
    this.sleeping = sleeping
    this.asking = asking
  }

  run(poller: Poller): void {
    const { message, sleeping, asking, aside } = this
    const polling = availableParallelism() > 1 ? asking : -1
    for (;;) {
      if (!aside.isEmpty) {
        if (!this.runAside()) return
        continue
      }
      let device = polling
      let length = -1
      if (device >= 0) length = poller.poll(device, message)
      if (length < 0) {
        device = sleeping
        length = read(device, message, message.length)
        if (length < 0) {
          if (mayReadAgain()) continue
          return
        }
      }
      this.handle(message, length, device)
    }
  }

  /**
   * Handles one request while some are put aside: one of those, if the gate is open again, or else a new one. Returns false
   * at the end of the mount.
   */
  private runAside(): boolean {
    const { message, asking, aside } = this
    if (!this.pass.holdsChanges) {
      const waiting = aside.take()
      if (waiting) this.handle(waiting.message, waiting.message.length, waiting.device)
      return true
    }
    if (!isReadyToRead(asking, ASIDE_MS)) return true
    const length = read(asking, message, message.length)
    if (length < 0) return mayReadAgain()
    this.handle(message, length, asking)
    return true
  }

  private handle(message: Buffer, length: number, device: number): void {
    const { responder, stats, pass, activity } = this
    // Before it enters: it may then enter another world.
    if (this.looks?.isDueFor(message)) this.looks.await(() => tell('look'))
    const started = stats.start()
    const isOpen = pass.enter()
    if (activity.mustTell()) tell('awake')
    if (!isOpen && !this.admit(message, length, device)) return
    const bytes = responder.answer(message, length)
    const opcode = message.readUInt32LE(IN_HEADER.at.opcode)
    const error = bytes > 0 ? responder.reply.readInt32LE(OUT_HEADER.at.error) : 0
    if (bytes > 0 && !send(device, responder.reply, bytes) && opcode === OPCODE.OPEN) {
      // Nobody closes what was opened for a process that has gone.
      if (error === 0) this.opens.released(u64le.get(message, IN_HEADER.at.nodeid))
    }
    pass.leave()
    const written = error === 0 && opcode === OPCODE.WRITE
    const dataBytes = written
      ? responder.reply.readUInt32LE(OUT_HEADER.size + WRITE_OUT.at.size)
      : bytes - OUT_HEADER.size
    stats.count(opcode, error, dataBytes, started)
  }

  /** Puts a request aside if it has to wait, and returns false. Where no more can be put aside, this thread waits. */
  private admit(message: Buffer, length: number, device: number): boolean {
    const { asking, aside } = this
    const isAdmitted = this.pass.admit(changesDisk(message, length), asking < 0 || aside.isFull)
    if (!isAdmitted) aside.add(message, length, device)
    return isAdmitted
  }
}

/** Reports whether reading the device may be tried again, after an error. If not, the mount has gone. */
function mayReadAgain(): boolean {
  const reason = errno()
  if (reason === ENOENT || reason === EINTR || reason === EAGAIN) return true
  if (reason !== ENODEV && reason !== ECONNABORTED) {
    log({ level: 'error', message: `reading /dev/fuse failed: ${errnoName(reason)}` })
  }
  return false
}

/** Returns whether the kernel has taken the reply. */
function send(device: number, reply: Buffer, bytes: number): boolean {
  if (write(device, reply, bytes) >= 0) return true
  const reason = errno()
  // The asking process (ENOENT) or the whole mount has gone.
  if (reason !== ENOENT && reason !== ENODEV && reason !== ECONNABORTED) {
    log({ level: 'error', message: `a reply of ${bytes} bytes was refused: ${errnoName(reason)}` })
  }
  return false
}

function log(entry: LogEntry): void {
  tell({ log: entry })
}

function tell(message: WorkerMessage): void {
  parentPort?.postMessage(message)
}

run(workerData as WorkerSetup)
