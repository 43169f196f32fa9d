/**
 * A mount from its beginning to its end, on the main thread: opening, mounting, INIT, workers, signals
 * and unmounting. The requests are the workers' (worker.ts).
 */
import fs from 'node:fs'
import { Worker } from 'node:worker_threads'
import { MountError } from '../errors.js'
import { type CatalogEntry, catalogOf } from '../formats/catalog.js'
import { type Chain, closeChain, type OpenOptions, openChain } from '../formats/chain.js'
import { type AskPassphrase, lockChain, unlockChain } from '../formats/encryption.js'
import { extentFiles, type LayerSpec, storeOf } from '../formats/layer.js'
import { createDiskMemory, type DiskMemory } from '../formats/disk-memory.js'
import { type CacheSizes, ImageSet } from '../formats/image-set.js'
import { type CrewMemory, crewMemories } from '../formats/unpack-crew.js'
import { clusterBytes, l2CoverageBytes } from '../formats/qcow2/header.js'
import { tableBytes } from '../formats/vmdk/image.js'
import type { WritableDisk } from '../formats/writable.js'
import { orInterrupted } from '../interruption.js'
import { errno, exitNow, read, write } from '../io/libc.js'
import type { Logger } from '../log.js'
import { VERSION } from '../version.js'
import { TextSlots } from './control.js'
import { answerInit } from './init.js'
import { DiskKeeper } from './disk-keeper.js'
import { checkMountpoint, mountFuse, unmountFuse } from './mount.js'
import { type MountInfo, mountAt, realMountpoint } from './mountinfo.js'
import type { MountOptions } from './options.js'
import { createPollMemory } from './poller.js'
import { MAX_REQUEST_BYTES, MESSAGE_BYTES, REPLY_BYTES } from './protocol.js'
import { sharedStats, WorkerStats } from './stats.js'
import type { Appearance } from './tree.js'
import type { HelperSetup } from './unpack-helper.js'
import type { SessionStart, WorkerMessage, WorkerSetup } from './worker.js'

export interface ServeRequest {
  readonly image: string
  readonly mountpoint: string
  readonly options: MountOptions
  readonly open: OpenOptions
  /** Asked for each layer that is encrypted. */
  readonly askPassphrase: AskPassphrase
  /** Aborted by what ends the program before it has mounted anything: unlocking may take long. */
  readonly interruption: AbortSignal
  /** Worker threads. */
  readonly threads: number
  /** Bytes of tables to keep, of all threads together; undefined for the rule of defaultMetadataBytes. */
  readonly metadataBytes: number | undefined
}

export interface Server {
  readonly mountpoint: string
  readonly entries: readonly CatalogEntry[]
  readonly warnings: readonly string[]
  readonly isWritable: boolean
  /**
   * Settles when the last request has been served: after unmounting, by whomever. False when not all
   * that was written could be kept.
   */
  readonly finished: Promise<boolean>
  /** Unmounts; a mount that is in use is detached and served to its end. */
  stop(reason: string): void
}

const MAX_METADATA_BYTES = 48 * 2 ** 20
/** Decompressed clusters of all threads together. */
const CLUSTER_CACHE_BYTES = 16 * 2 ** 20
/** The kernel's readahead for sequential readers; more than a request gained nothing. */
const READ_AHEAD_BYTES = MAX_REQUEST_BYTES
const ANSWER_TIMEOUT_MS = 20_000

/**
 * Mounts and resolves when the mount answers. Throws ImageError, MountError; then nothing is left. After
 * Interrupted a key may still be being derived: end the process at once.
 */
export async function startServer(request: ServeRequest, logger: Logger): Promise<Server> {
  const { access, forceShare } = request.options
  const opened = openChain(request.image, {
    ...request.open,
    access: access === 'ro' ? 'read' : access === 'rw' ? 'write' : 'write if possible',
    takesLocks: !forceShare,
  })
  let chain = opened
  try {
    checkMountpoint(request.mountpoint)
    chain = await orInterrupted(unlockChain(opened, request.askPassphrase), request.interruption)
    return await serveChain(chain, request, logger)
  } catch (error) {
    lockChain(chain)
    closeChain(opened)
    throw error
  }
}

async function serveChain(chain: Chain, request: ServeRequest, logger: Logger): Promise<Server> {
  const { entries, warnings: catalogWarnings } = catalogOf(chain)
  const mountpoint = realMountpoint(request.mountpoint)
  const { threads, metadataBytes = defaultMetadataBytes(chain.layers[0], request.threads) } =
    request
  const caches: CacheSizes = {
    metadataBytes: Math.floor(metadataBytes / threads),
    clusterBytes: Math.floor(CLUSTER_CACHE_BYTES / threads),
  }
  // The main thread flushes, and counts that as a worker does.
  const stats = sharedStats(threads + 1)
  const memory = chain.isWritable
    ? createDiskMemory(chain.layers[0], threads + 1, storeOf(chain.layers[0]))
    : undefined
  const warnings = [...chain.warnings, ...catalogWarnings, ...(memory?.warnings ?? [])]
  const keeper = memory && keeperOf(chain, caches, memory, request, stats, logger)
  let mount: MountInfo | undefined
  let isServing = false
  const workers = startWorkers(
    { chain, entries, request, mountpoint, logger, caches, memory, stats },
    () => {
      if (isServing) abandon(mount, logger)
    },
  )
  try {
    const { allowOther, allowRoot, defaultPermissions, fsname } = request.options
    const device = mountFuse({
      mountpoint,
      fsname: fsname ?? chain.layers[0].path,
      isWritable: chain.isWritable,
      allowOther: allowOther || allowRoot,
      // Who lets others in means those that the image's own mode lets in.
      defaultPermissions: defaultPermissions || allowOther || allowRoot,
    })
    mount = mountAt(mountpoint)
    const minor = negotiate(device, logger)
    if (mount) raiseReadAhead(mount, logger)
    isServing = true
    for (const worker of workers.threads) {
      worker.postMessage({ device, minor } satisfies SessionStart)
    }
    await firstAnswer(mountpoint, workers.finished)
  } catch (error) {
    if (mount) unmountFuse(mount, true)
    await workers.end()
    keeper?.close()
    throw error
  }
  const { isWritable } = chain
  const files = entries.length
  logger.info({ image: chain.layers[0].path, mountpoint, files, isWritable }, 'mounted')
  keeper?.start(request.options.commitSeconds)
  const finished = workers.finished.then(() => {
    // The workers end with the mount; where they failed, it must not stay behind without them.
    stopMount(mount, 'no worker is left', logger)
    const isKept = keeper?.close() ?? true
    closeChain(chain)
    lockChain(chain)
    logger.info({ mountpoint }, 'unmounted')
    return isKept
  })
  const stop = (reason: string) => {
    stopMount(mount, reason, logger)
    // Whoever still uses it may do so for long.
    keeper?.flush()
  }
  return { mountpoint, entries, warnings, isWritable, finished, stop }
}

/** Opens the disk for writing on this thread, the last of those that take part. Throws ImageError. */
function keeperOf(
  chain: Chain,
  caches: CacheSizes,
  memory: DiskMemory,
  { threads }: ServeRequest,
  stats: SharedArrayBuffer,
  logger: Logger,
): DiskKeeper {
  const counts = new WorkerStats(stats, threads)
  const { disk } = new ImageSet(chain.layers, caches, counts, { memory, thread: threads })
  return new DiskKeeper(disk as WritableDisk, () => counts.countFlush(), logger)
}

/**
 * Ends all at once, as kill -9 would: a thread that died while it wrote may have left the shared memory
 * half changed, and what is in the image is sound without it.
 */
function abandon(mount: MountInfo | undefined, logger: Logger): void {
  logger.fatal('a thread has died while the disk is mounted for writing: giving up at once')
  const current = mount && mountAt(mount.mountpoint)
  try {
    if (current && current.device === mount.device) unmountFuse(current, true)
  } catch (error) {
    logger.error({ why: (error as Error).message }, 'it could not be unmounted')
  }
  exitNow(1)
}

/**
 * The bytes of tables that are kept unless told otherwise: all L2 or grain tables that the disk can have,
 * once for each thread, but at most 48 MiB in all. A thread of two then holds the tables of 192 GiB with
 * clusters of 64 KiB.
 */
export function defaultMetadataBytes(layer: LayerSpec, threads: number): number {
  const { qcow2, qcow, cow, vmdk } = layer
  let tables = 0
  if (qcow2) tables = Math.ceil(qcow2.sizeBytes / l2CoverageBytes(qcow2)) * clusterBytes(qcow2)
  if (qcow)
    tables =
      Math.ceil(qcow.sizeBytes / 2 ** (qcow.clusterBits + qcow.l2Bits)) * 2 ** (qcow.l2Bits + 3)
  if (cow) tables = cow.bitmapBytes
  if (vmdk) tables = tableBytes(vmdk)
  return Math.min(MAX_METADATA_BYTES, threads * tables)
}

interface Workers {
  readonly threads: readonly Worker[]
  readonly finished: Promise<void>
  /** Ends those that serve nothing yet. */
  end(): Promise<void>
}

interface WorkersRequest {
  readonly chain: Chain
  readonly entries: readonly CatalogEntry[]
  readonly request: ServeRequest
  readonly mountpoint: string
  readonly logger: Logger
  /** Of each thread. */
  readonly caches: CacheSizes
  readonly memory: DiskMemory | undefined
  readonly stats: SharedArrayBuffer
}

/** @param onDeath called when a worker has died that may have been writing */
function startWorkers(
  { chain, entries, request, mountpoint, logger, caches, memory, stats }: WorkersRequest,
  onDeath: () => void,
): Workers {
  const { threads } = request
  const started = Date.now()
  const shared: WorkerSetup['shared'] = {
    stats,
    allocated: new SharedArrayBuffer(entries.length * 8),
    slots: new TextSlots().shared,
    polling: createPollMemory(),
    crews: crewMemories(threads, REPLY_BYTES),
    disk: memory,
  }
  new Float64Array(shared.allocated).fill(-1)
  const setup: Omit<WorkerSetup, 'index'> = {
    layers: chain.layers,
    entries,
    appearance: appearanceOf(chain, request.options),
    onlyUids: request.options.allowRoot ? [0, process.getuid?.() ?? 0] : undefined,
    caches,
    status: statusOf(chain, entries, request, mountpoint, started),
    started,
    isGrowable: request.options.growable,
    shared,
  }
  let isHelped = false
  const all = Array.from({ length: threads }, (_, index) => {
    const worker = new Worker(new URL('./worker.js', import.meta.url), {
      workerData: { ...setup, index } satisfies WorkerSetup,
      // A worker's own objects die young; most of its memory are buffers outside of the heap.
      resourceLimits: { maxYoungGenerationSizeMb: 8 },
    })
    worker.on('message', (message: WorkerMessage) => {
      if (message === 'help') {
        if (!isHelped) startHelper(shared.crews, chain, logger)
        isHelped = true
      } else if (message !== 'served')
        logger[message.log.level](message.log.detail ?? {}, message.log.message)
    })
    worker.on('error', error => {
      logger.fatal({ stack: error.stack }, 'a worker has died')
      if (memory) onDeath()
    })
    return worker
  })
  // A worker is done when it has served its last request; how its thread ends concerns nobody.
  const ended = all.map(
    worker =>
      new Promise<void>(resolve => {
        worker.once('exit', () => resolve())
        worker.on('message', (message: WorkerMessage) => {
          if (message === 'served') resolve()
        })
      }),
  )
  return {
    threads: all,
    finished: Promise.all(ended).then(() => {}),
    end: async () => {
      await Promise.all(all.map(worker => worker.terminate()))
    },
  }
}

/** It has no end of its own, and does not keep the process from ending. */
function startHelper(crews: readonly CrewMemory[], { layers }: Chain, logger: Logger): void {
  const helper = new Worker(new URL('./unpack-helper.js', import.meta.url), {
    // What is compressed is not encrypted, so it needs no keys.
    workerData: {
      crews,
      layers: layers.map(({ encryption: _, ...layer }) => layer),
    } satisfies HelperSetup,
    resourceLimits: { maxYoungGenerationSizeMb: 4 },
  })
  helper.unref()
  // The workers decompress alone then.
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

/** Root may; for others the kernel's 128 KiB stay. */
function raiseReadAhead(mount: MountInfo, logger: Logger): void {
  try {
    fs.writeFileSync(
      `/sys/class/bdi/${mount.device}/read_ahead_kb`,
      String(READ_AHEAD_BYTES / 1024),
    )
  } catch (error) {
    logger.debug({ reason: (error as Error).message }, 'the readahead stays as it is')
  }
}

/** Asks the mount for its folder, off this thread, so that a server that fails to answer is noticed. */
async function firstAnswer(mountpoint: string, finished: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new MountError(`${mountpoint}: the mount does not answer`)),
      ANSWER_TIMEOUT_MS,
    )
  })
  const ended = finished.then(() => {
    throw new MountError(`${mountpoint}: the server ended before it answered`)
  })
  // It goes on after the race was won by another, and nobody listens then.
  ended.catch(() => {})
  try {
    await Promise.race([fs.promises.stat(mountpoint), late, ended])
  } finally {
    clearTimeout(timer)
  }
}

function stopMount(mount: MountInfo | undefined, reason: string, logger: Logger): void {
  const current = mount && mountAt(mount.mountpoint)
  // Unmounted already, or something else has been mounted there since.
  if (!current || current.device !== mount.device) return
  try {
    unmountFuse(current, false)
  } catch (error) {
    logger.warn({ reason, why: (error as Error).message }, 'in use: detached and served to its end')
    try {
      unmountFuse(current, true)
    } catch (failure) {
      logger.error({ why: (failure as Error).message }, 'it could not be unmounted')
    }
  }
}

function appearanceOf(chain: Chain, options: MountOptions): Appearance {
  const [top] = chain.layers
  const mode = options.umask === undefined ? top.mode : 0o777 & ~options.umask
  // Whoever could open the image to mount it may read what it holds.
  const ours = options.umask === undefined ? 0o600 : 0
  const fileMode = (mode & 0o444) | (ours & 0o444)
  return {
    uid: options.uid ?? process.getuid?.() ?? 0,
    gid: options.gid ?? process.getgid?.() ?? 0,
    fileMode,
    diskMode: chain.isWritable ? fileMode | (mode & 0o222) | ours : fileMode,
    // Who may read the files may enter.
    dirMode: fileMode | (fileMode >> 2),
    modified: top.modified,
  }
}

/** What status.json says that does not change. */
function statusOf(
  chain: Chain,
  entries: readonly CatalogEntry[],
  request: ServeRequest,
  mountpoint: string,
  started: number,
): Record<string, unknown> {
  return {
    version: VERSION,
    pid: process.pid,
    started: new Date(started).toISOString(),
    image: chain.layers[0].path,
    mountpoint,
    disk: entries[0]?.name,
    threads: request.threads,
    snapshots: chain.snapshots.length + chain.machineSnapshots.length,
    layers: chain.layers.map(layer => ({
      path: layer.path,
      format: layer.format,
      ...(layer.encryption && { encryption: layer.encryption.method }),
      ...(layer.dataFile && { dataFile: layer.dataFile.path }),
      ...(layer.vmdk && { extents: extentFiles(layer).map(({ path }) => path) }),
    })),
  }
}
