/**
 * The main thread's part of the direct transport: it mounts, answers INIT and starts the worker threads, which then speak
 * the kernel's protocol (worker.ts).
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { MessageChannel, type MessagePort, Worker } from 'node:worker_threads'
import type { LayerSpec } from '../formats/format.js'
import { type QueueMemory, queueMemories } from '../image/decompress-queue.js'
import { MountError } from '../errors.js'
import { errno, read, write } from '../io/libc.js'
import type { Logger } from '../log.js'
import { TextSlots } from './control.js'
import { Forgetter } from './forgetter.js'
import { answerInit } from './init.js'
import { mountFuse, unmountFuse } from './mount.js'
import { type MountInfo, mountAt } from '../io/mountinfo.js'
import { Ownership } from './ownership.js'
import { PageDropper } from './page-dropper.js'
import { createPollMemory } from './poller.js'
import { MESSAGE_BYTES, REPLY_BYTES } from './protocol.js'
import type { Forgetting, Session, SessionParts } from './session.js'
import { startPageDropper } from './start-page-dropper.js'
import { DISK_ID } from './tree.js'
import { Truncations } from './truncations.js'
import type { HelperSetup } from './decompress-helper.js'
import type { SessionStart, WorkerMessage, WorkerSetup } from './worker.js'
import type { World } from './world.js'

export class DirectSession implements Session {
  readonly finished: Promise<void>
  private readonly workers: Workers
  private readonly forgetter = new Forgetter()
  private isServing = false
  private mounted: MountInfo | undefined

  /** @param onDeath called if a worker dies that may have been writing, with the mount if there is one */
  constructor(
    private readonly parts: SessionParts,
    onDeath: (mount: MountInfo | undefined) => void,
  ) {
    this.workers = startWorkers(parts, () => {
      if (this.isServing) onDeath(this.mounted)
    })
    this.finished = this.workers.finished
  }

  /** Waits until the workers have loaded all code: without it, programs that touch the mount would hang. */
  prepare(): Promise<void> {
    return this.workers.ready
  }

  async mount(): Promise<MountInfo | undefined> {
    const { mountpoint, mountRequest, logger } = this.parts
    const device = mountFuse(mountRequest)
    this.mounted = mountAt(mountpoint)
    try {
      const minor = negotiate(device, logger)
      this.isServing = true
      this.workers.device = device
      for (const worker of this.workers.threads) {
        worker.postMessage({ device, minor } satisfies SessionStart)
      }
    } catch (error) {
      if (this.mounted) unmountFuse(this.mounted, true)
      throw error
    }
    return this.mounted
  }

  show(world: World): void {
    for (const port of this.workers.worlds) port.postMessage(world)
  }

  async forget(stale: Forgetting): Promise<void> {
    await this.forgetter.forget({ ...stale, paths: [], device: this.workers.device })
  }

  async unmount(mount: MountInfo, detach: boolean): Promise<void> {
    unmountFuse(mount, detach)
  }

  end(): Promise<void> {
    return this.workers.end()
  }
}

interface Workers {
  /** The mount's /dev/fuse, once there is one. */
  device: number
  readonly threads: readonly Worker[]
  /** They take new worlds to the workers. */
  readonly worlds: readonly MessagePort[]
  /** Rejects with MountError if a worker ends before it is ready. */
  readonly ready: Promise<void>
  readonly finished: Promise<void>
  /** Ends workers that do not serve yet. */
  end(): Promise<void>
}

/** @param onDeath called if a worker dies that may have been writing */
function startWorkers(
  { world, gate, opens, appearance, onlyUids, threads, logger, ...parts }: SessionParts,
  onDeath: () => void,
): Workers {
  const { caches, stats, status, started, isGrowable, onChanged } = parts
  const shared: WorkerSetup['shared'] = {
    stats,
    opens,
    gate: gate.shared,
    slots: new TextSlots().shared,
    polling: createPollMemory(),
    queues: queueMemories(threads, REPLY_BYTES),
    truncations: new Truncations().shared,
    ownership: new Ownership().shared,
    pageDrops: new PageDropper().shared,
  }
  const setup: Omit<WorkerSetup, 'index' | 'worlds'> = {
    world,
    appearance,
    onlyUids,
    caches,
    status,
    started,
    isGrowable,
    shared,
  }
  let isHelped = false
  let dropsPages = false
  const dropPages = () => {
    if (dropsPages) return
    dropsPages = true
    const { device } = workers
    startPageDropper({ shared: shared.pageDrops, device, node: DISK_ID }, error =>
      logger.error({ stack: error.stack }, 'the thread that drops pages has died'),
    )
  }
  const worlds: MessagePort[] = []
  const all = Array.from({ length: threads }, (_, index) => {
    const { port1, port2 } = new MessageChannel()
    port1.unref()
    worlds.push(port1)
    const worker = new Worker(new URL('./worker.js', import.meta.url), {
      workerData: { ...setup, index, worlds: port2 } satisfies WorkerSetup,
      transferList: [port2],
      // A worker's objects die young; most of its memory is in buffers outside the heap.
      resourceLimits: { maxYoungGenerationSizeMb: 8 },
    })
    worker.on('message', (message: WorkerMessage) => {
      if (message === 'help') {
        if (!isHelped) startHelper(shared.queues, world.layers, logger)
        isHelped = true
      } else if (message === 'page drops') dropPages()
      else if (typeof message !== 'object') return
      else if ('changed' in message) onChanged(message.changed)
      else logger[message.log.level](message.log.detail ?? {}, message.log.message)
    })
    worker.on('error', error => {
      logger.fatal({ stack: error.stack ?? String(error) }, 'a worker has died')
      if (world.memory) onDeath()
    })
    return worker
  })
  // A worker is done when it has served its last request; how its thread ends does not matter.
  const ended = all.map(
    worker =>
      new Promise<void>(resolve => {
        worker.once('exit', () => resolve())
        worker.on('message', (message: WorkerMessage) => {
          if (message === 'served') resolve()
        })
      }),
  )
  const ready = Promise.all(all.map(untilReady)).then(() => {})
  // The promise may reject before the caller waits for it.
  ready.catch(() => {})
  const workers: Workers = {
    device: -1,
    threads: all,
    worlds,
    ready,
    finished: Promise.all(ended).then(() => {}),
    end: async () => {
      const late = sleep(END_TIMEOUT_MS, undefined, { ref: false })
      await Promise.race([Promise.all(all.map(worker => worker.terminate())), late])
    },
  }
  return workers
}

/** How long a thread may take to load what it needs. */
const READY_TIMEOUT_MS = 30_000
/** How long a terminated thread may take to end. If threads are scarce it may hang. */
const END_TIMEOUT_MS = 2_000

function untilReady(worker: Worker): Promise<void> {
  return new Promise((resolve, reject) => {
    worker.on('message', (message: WorkerMessage) => {
      if (message !== 'ready') return
      clearTimeout(timer)
      resolve()
    })
    const fail = (why: string) => reject(new MountError(`a thread could not be started: ${why}`))
    const timer = setTimeout(() => fail('it does not answer'), READY_TIMEOUT_MS)
    worker.once('error', error => fail(error instanceof Error ? error.message : String(error)))
    worker.once('exit', () => fail('it has ended'))
  })
}

/** Starts the helper. It runs until the process ends, and does not keep the process alive. */
function startHelper(
  queues: readonly QueueMemory[],
  layers: readonly LayerSpec[],
  logger: Logger,
): void {
  const helper = new Worker(new URL('./decompress-helper.js', import.meta.url), {
    // Compressed clusters are not encrypted, so the helper needs no keys.
    workerData: {
      queues,
      layers: layers.map(({ encryption: _, ...layer }) => layer),
    } satisfies HelperSetup,
    resourceLimits: { maxYoungGenerationSizeMb: 4 },
  })
  helper.unref()
  // Then the workers decompress alone.
  helper.on('error', error => logger.error({ stack: error.stack }, 'the helper has died'))
}

/** Reads INIT and answers it, before any worker reads. Returns the protocol's minor version. */
function negotiate(device: number, logger: Logger): number {
  const message = Buffer.alloc(MESSAGE_BYTES)
  for (;;) {
    const length = read(device, message, message.length)
    if (length < 0) {
      const reason = errno()
      if (reason === 4 || reason === 11) continue
      throw new MountError(`the kernel's first message could not be read (errno ${reason})`)
    }
    const { reply, isFinal, minor, flags } = answerInit(message.subarray(0, length))
    if (write(device, reply, reply.length) < 0) {
      throw new MountError(`the kernel refused our answer to INIT (errno ${errno()})`)
    }
    if (isFinal) {
      logger.debug({ protocol: `7.${minor}`, flags }, 'negotiated with the kernel')
      return minor
    }
  }
}
