/**
 * A worker thread: a blocking loop over /dev/fuse that reads a request, answers it and writes the reply. It uses no promise
 * and no event loop, since each would cost more than the request.
 */
import fs from 'node:fs'
import { availableParallelism, constants } from 'node:os'
import { parentPort, workerData } from 'node:worker_threads'
import { errnoName } from '../errors.js'
import type { CatalogEntry } from '../image/catalog.js'
import type { LayerSpec } from '../formats/format.js'
import type { DiskMemory } from '../image/disk-memory.js'
import { type CacheSizes, ViewSet } from '../image/view-set.js'
import { type QueueMemory, DecompressQueue } from '../image/decompress-queue.js'
import { cloneDevice, errno, read, write } from '../io/libc.js'
import { TextSlots } from './control.js'
import { ImageFs } from './image-fs.js'
import { Responder } from './opcodes.js'
import { Ownership } from './ownership.js'
import { dropPages, PageDropper } from './page-dropper.js'
import { Poller } from './poller.js'
import { IN_HEADER, MESSAGE_BYTES, OPCODE, OUT_HEADER, WRITE_OUT } from './protocol.js'
import { faultLogger, type LogEntry, stallMessage, statsText, statusText } from './diagnostics.js'
import { WorkerStats } from './stats.js'
import { type Appearance, Tree } from './tree.js'
import { Truncations } from './truncations.js'
import { warmUp } from './warm-up.js'

/** The data that a worker starts with: plain data and shared memory. */
export interface WorkerSetup {
  readonly index: number
  readonly layers: readonly LayerSpec[]
  readonly entries: readonly CatalogEntry[]
  readonly appearance: Appearance
  readonly onlyUids: readonly number[] | undefined
  readonly caches: CacheSizes
  readonly status: Readonly<Record<string, unknown>>
  readonly started: number
  readonly isGrowable: boolean
  readonly partitions: string | undefined
  readonly shared: {
    readonly stats: SharedArrayBuffer
    readonly allocated: SharedArrayBuffer
    readonly slots: SharedArrayBuffer
    /** For Poller. */
    readonly polling: SharedArrayBuffer
    /** One for each worker, which writes its replies to the target. */
    readonly queues: readonly QueueMemory[]
    /** Present if the disk is written. */
    readonly disk: DiskMemory | undefined
    /** For Truncations, Ownership and PageDropper. */
    readonly truncations: SharedArrayBuffer
    readonly ownership: SharedArrayBuffer
    readonly pageDrops: SharedArrayBuffer
  }
}

/** The message that makes a worker serve. */
export interface SessionStart {
  /** The descriptor of the mount's /dev/fuse. */
  readonly device: number
  /** The minor version of the protocol that was agreed on. */
  readonly minor: number
}

/** Messages of a worker to the main thread: 'ready' when it can serve; 'served' is the last one. */
export type WorkerMessage = { readonly log: LogEntry } | 'ready' | 'help' | 'page drops' | 'served'

/** How long the page dropper may take to start: the main thread starts it, and the machine may be busy. */
const PAGE_DROPPER_START_MS = 3_000
const { EAGAIN, ECONNABORTED, EINTR, ENODEV, ENOENT } = constants.errno

function run(setup: WorkerSetup): void {
  const queue = setup.shared.queues[setup.index] as QueueMemory
  const stats = new WorkerStats(setup.shared.stats, setup.index)
  const { disk: memory } = setup.shared
  const onStall = (seconds: number) => log({ level: 'warn', message: stallMessage(seconds) })
  const writing = memory && { memory, thread: setup.index, onStall }
  // Make this before any part of the real disk: see warm-up.ts.
  const warming = memory && new Warming(setup)
  const views = new ViewSet(setup.layers, setup.caches, stats, writing)
  const fileSystem = new ImageFs({
    tree: new Tree(setup.entries, setup.appearance, setup.partitions !== undefined),
    views,
    layers: setup.layers,
    allocated: new Float64Array(setup.shared.allocated),
    slots: new TextSlots(setup.shared.slots),
    controlText: {
      status: () => statusText(setup.status, views, setup.layers[0] as LayerSpec),
      stats: () => statsText(setup.shared.stats, setup.started),
      partitions: setup.partitions,
    },
    isGrowable: setup.isGrowable,
    onFlush: () => stats.countFlush(),
    truncations: new Truncations(setup.shared.truncations, () => tell('page drops')),
    ownership: new Ownership(setup.shared.ownership),
    dropPages: dropPages(new PageDropper(setup.shared.pageDrops), PAGE_DROPPER_START_MS),
    ...(setup.onlyUids && { onlyUids: setup.onlyUids }),
    ...(availableParallelism() > 1 && { queue: decompressQueue(queue) }),
  })
  const responder = new Responder(fileSystem, faultLogger(log), Buffer.from(queue.target))
  parentPort?.once('message', ({ device, minor }: SessionStart) => {
    fileSystem.speak(minor)
    serve(device, responder, stats, new Poller(setup.shared.polling, setup.index), warming)
    tell('served')
    parentPort?.close()
  })
  tell('ready')
}

/** Runs the steps of the warm-up. */
class Warming {
  private steps: Iterator<void> | undefined

  constructor({ index, layers, caches }: WorkerSetup) {
    // More warm-ups at once than processors would take too long.
    if (index >= availableParallelism() || availableParallelism() === 1) return
    this.guarded(() => {
      this.steps = warmUp(layers[0] as LayerSpec, caches)
    })
  }

  /** Runs steps until a request comes, which waits for one step at most. Returns its length, or -1 at the end. */
  poll(device: number, message: Buffer): number {
    while (this.steps) {
      const length = read(device, message, message.length)
      if (length >= 0) return length
      // The mount has gone already: the sleeping read reports why.
      if (errno() !== EAGAIN) return -1
      this.guarded(() => {
        if (this.steps?.next().done) this.steps = undefined
      })
    }
    return -1
  }

  private guarded(act: () => void): void {
    try {
      act()
    } catch (error) {
      this.steps = undefined
      log({ level: 'debug', message: 'no warm-up', detail: { why: String(error) } })
    }
  }
}

/** Joins the helper, which starts with the first compressed cluster: most images have none. */
function decompressQueue(memory: QueueMemory): DecompressQueue {
  const payload = Buffer.from(memory.target).subarray(OUT_HEADER.size)
  return new DecompressQueue(memory, payload, OUT_HEADER.size, () => tell('help'))
}

/**
 * Opens the devices of a worker: one to sleep on and one to poll. A reply must go to the device that its request came from.
 * If the kernel does not allow cloning, all workers share `session`.
 */
function openDevices(session: number): { sleeping: number; polling: number } {
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
  return {
    sleeping: sleeping < 0 ? session : sleeping,
    polling: availableParallelism() > 1 ? clone(O_NONBLOCK) : -1,
  }
}

function serve(
  session: number,
  responder: Responder,
  stats: WorkerStats,
  poller: Poller,
  warming: Warming | undefined,
): void {
  const message = Buffer.allocUnsafeSlow(MESSAGE_BYTES)
  const devices = openDevices(session)
  for (;;) {
    let device = devices.polling
    let length = -1
    if (device >= 0) {
      length = warming?.poll(device, message) ?? -1
      if (length < 0) length = poller.poll(device, message)
    }
    if (length < 0) {
      device = devices.sleeping
      length = read(device, message, message.length)
      if (length < 0) {
        const reason = errno()
        if (reason === ENOENT || reason === EINTR || reason === EAGAIN) continue
        if (reason !== ENODEV && reason !== ECONNABORTED) {
          log({ level: 'error', message: `reading /dev/fuse failed: ${errnoName(reason)}` })
        }
        return
      }
    }
    const started = stats.start()
    const bytes = responder.answer(message, length)
    if (bytes > 0) send(device, responder.reply, bytes)
    const error = bytes > 0 ? responder.reply.readInt32LE(OUT_HEADER.at.error) : 0
    const opcode = message.readUInt32LE(IN_HEADER.at.opcode)
    const written = error === 0 && opcode === OPCODE.WRITE
    const dataBytes = written
      ? responder.reply.readUInt32LE(OUT_HEADER.size + WRITE_OUT.at.size)
      : bytes - OUT_HEADER.size
    stats.count(opcode, error, dataBytes, started)
  }
}

function send(device: number, reply: Buffer, bytes: number): void {
  if (write(device, reply, bytes) >= 0) return
  const reason = errno()
  // The asking process (ENOENT) or the whole mount has gone.
  if (reason === ENOENT || reason === ENODEV || reason === ECONNABORTED) return
  log({ level: 'error', message: `a reply of ${bytes} bytes was refused: ${errnoName(reason)}` })
}

function log(entry: LogEntry): void {
  tell({ log: entry })
}

function tell(message: WorkerMessage): void {
  parentPort?.postMessage(message)
}

run(workerData as WorkerSetup)
