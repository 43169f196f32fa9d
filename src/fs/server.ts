/**
 * A mount from its beginning to its end, on the main thread: opening, mounting, signals and unmounting.
 * The requests are the transport's (direct.ts, libfuse/session.ts).
 */
import fs from 'node:fs'
import { MountError, ProtocolError } from '../errors.js'
import { type CatalogEntry, catalogOf } from '../image/catalog.js'
import { type Chain, closeChain, type OpenOptions } from '../image/chain.js'
import { openChain } from '../image/open-chain.js'
import { type AskPassphrase, lockChain, unlockChain } from '../image/encryption.js'
import type { LayerSpec } from '../formats/format.js'
import { formatOf } from '../formats/registry.js'
import { removedFiles, storeOf } from '../image/layer.js'
import { createDiskMemory } from '../image/disk-memory.js'
import { type CacheSizes, ImageSet } from '../image/image-set.js'
import { orInterrupted } from '../interruption.js'
import { exitNow } from '../io/libc.js'
import { nameEndingServer, nameServer } from '../io/processes.js'
import type { Logger } from '../log.js'
import { VERSION } from '../version.js'
import { appearanceOf } from './appearance.js'
import { DirectSession } from './direct.js'
import { DiskKeeper } from './disk-keeper.js'
import { checkMountpoint, unmountFuse } from './mount.js'
import { type MountInfo, mountAt, realMountpoint } from '../io/mountinfo.js'
import type { MountOptions } from './options.js'
import { MAX_REQUEST_BYTES } from './protocol.js'
import { checkNotMounted, namingItsMount, whenReleased } from './release.js'
import { stallMessage } from './reports.js'
import { requireDescriptors } from './rlimits.js'
import type { MainThread, Session, SessionParts, Transport } from './session.js'
import { sharedStats, WorkerStats } from './stats.js'

export interface ServeRequest {
  readonly image: string
  readonly mountpoint: string
  readonly options: MountOptions
  readonly open: OpenOptions
  /** Asked for each layer that is encrypted. */
  readonly askPassphrase: AskPassphrase
  /** Told what takes long, a line for the user. */
  readonly say: (line: string) => void
  /** Aborted by what ends the program before it has mounted anything: unlocking may take long. */
  readonly interruption: AbortSignal
  /** Worker threads of the direct transport. */
  readonly threads: number
  /** Undefined for the direct one, and libfuse where this kernel is too old for that. */
  readonly transport: Transport | undefined
  /** Bytes of tables to keep, of all threads together; undefined for the rule of defaultMetadataBytes. */
  readonly metadataBytes: number | undefined
}

export interface Server {
  readonly mountpoint: string
  readonly entries: readonly CatalogEntry[]
  readonly warnings: readonly string[]
  readonly isWritable: boolean
  /** The image's format, and whether it is but a guess: nothing in the file says raw. */
  readonly format: string
  readonly isGuessed: boolean
  /**
   * Settles when the last request has been served: after unmounting, by whomever. False when not all
   * that was written could be kept.
   */
  readonly finished: Promise<boolean>
  /** Unmounts; a mount that is in use is detached and served to its end. */
  stop(reason: string): Promise<void>
}

const MAX_METADATA_BYTES = 48 * 2 ** 20
/** Decompressed clusters of all threads together. */
const CLUSTER_CACHE_BYTES = 16 * 2 ** 20
/** The kernel's readahead for sequential readers; more than a request gained nothing. */
const READ_AHEAD_BYTES = MAX_REQUEST_BYTES
const ANSWER_TIMEOUT_MS = 20_000
/** What a mount opens later: to mount, to answer for the first time, to unmount, to reopen the log. */
const DESCRIPTORS_TO_SERVE = 12
/** A thread that decompresses takes some more; without it the workers decompress alone. */
const DESCRIPTORS_A_THREAD = 2

/**
 * Mounts and resolves when the mount answers. Throws ImageError, MountError; then nothing is left. After
 * Interrupted a key may still be being derived: end the process at once.
 */
export async function startServer(request: ServeRequest, logger: Logger): Promise<Server> {
  const { access, forceShare } = request.options
  // Whoever lacks the package need not be asked for passphrases first.
  if (request.transport === 'libfuse') (await import('./libfuse/package.js')).loadFuseNative()
  const open = () =>
    openChain(request.image, {
      ...request.open,
      access: access === 'ro' ? 'read' : access === 'rw' ? 'write' : 'write if possible',
      takesLocks: !forceShare,
    })
  const opened = await whenReleased(open, request.say, request.interruption).catch(async error => {
    throw await namingItsMount(error, request.image)
  })
  let chain = opened
  try {
    await checkNotMounted(request.image, request.mountpoint)
    checkMountpoint(request.mountpoint)
    chain = await orInterrupted(unlockChain(opened, request.askPassphrase), request.interruption)
    return await serveBySomeTransport(chain, request, logger)
  } catch (error) {
    lockChain(chain)
    closeChain(opened)
    throw error
  }
}

/** By the transport that was asked for, or by the first that this kernel knows. */
async function serveBySomeTransport(
  chain: Chain,
  request: ServeRequest,
  logger: Logger,
): Promise<Server> {
  const { transport = 'direct' } = request
  try {
    return await serveChain(chain, request, transport, logger)
  } catch (error) {
    if (request.transport !== undefined || !(error instanceof ProtocolError)) throw error
    const { hasFuseNative } = await import('./libfuse/package.js')
    if (!hasFuseNative()) throw error
    logger.warn({ why: error.message }, 'the direct transport is not possible: libfuse is tried')
    return await serveChain(chain, request, 'libfuse', logger)
  }
}

async function serveChain(
  chain: Chain,
  request: ServeRequest,
  transport: Transport,
  logger: Logger,
): Promise<Server> {
  const { entries, warnings: catalogWarnings } = catalogOf(chain)
  const mountpoint = realMountpoint(request.mountpoint)
  // The callbacks of libfuse are the main thread's.
  const threads = transport === 'direct' ? request.threads : 0
  const { isWritable } = chain
  const caches = cachesOf(chain, request, Math.max(1, threads))
  // The main thread flushes, and counts that as a worker does.
  const stats = sharedStats(threads + 1)
  const memory = isWritable
    ? createDiskMemory(chain.layers[0], threads + 1, storeOf(chain.layers[0]))
    : undefined
  const warnings = [...chain.warnings, ...catalogWarnings, ...(memory?.warnings ?? [])]
  const counts = new WorkerStats(stats, threads)
  const onStall = (seconds: number) => logger.warn(stallMessage(seconds))
  const writing = memory && { memory, thread: threads, onStall }
  const images = new ImageSet(chain.layers, caches, counts, writing)
  const countFlush = () => counts.countFlush()
  const removed = () => removedFiles(chain.layers[0])
  const keeper = images.disk && new DiskKeeper(images.disk, countFlush, removed, logger)
  const { allowOther, allowRoot, defaultPermissions, fsname, growable, flags } = request.options
  const started = Date.now()
  const parts: SessionParts = {
    ...{ chain, entries, mountpoint, threads, caches, memory, stats, started, logger },
    appearance: appearanceOf(chain, request.options),
    onlyUids: allowRoot ? [0, process.getuid?.() ?? 0] : undefined,
    mountRequest: {
      mountpoint,
      fsname: fsname ?? chain.layers[0].path,
      isWritable,
      flags,
      allowOther: allowOther || allowRoot,
      // Who lets others in means those that the image's own mode lets in.
      defaultPermissions: defaultPermissions || allowOther || allowRoot,
    },
    status: statusOf(chain, entries, transport, Math.max(1, threads), mountpoint, started),
    isGrowable: growable,
  }
  const session = await sessionOf(transport, parts, { images, counts })
  let mount: MountInfo | undefined
  try {
    await session.prepare()
    requireDescriptors(DESCRIPTORS_TO_SERVE + threads * DESCRIPTORS_A_THREAD)
    mount = await session.mount()
    if (mount) nameServer(mount.device)
    await firstAnswer(mountpoint, session.finished)
    // The kernel lowers it again as it reads the answer to INIT, and libfuse tells of that beforehand.
    if (mount) raiseReadAhead(mount, logger)
  } catch (error) {
    if (mount) await session.unmount(mount, true)
    await session.end()
    keeper?.close()
    throw error
  }
  const files = entries.length
  const { path: image } = chain.layers[0]
  logger.info({ image, mountpoint, files, isWritable, transport }, 'mounted')
  keeper?.start(request.options.commitSeconds)
  const finished = session.finished.then(async () => {
    nameEndingServer()
    // The workers end with the mount; where they failed, it must not stay behind without them.
    await stopMount(session, mount, 'no worker is left', logger)
    const isKept = keeper?.close() ?? true
    closeChain(chain)
    lockChain(chain)
    logger.info({ mountpoint }, 'unmounted')
    return isKept
  })
  const stop = async (reason: string) => {
    await stopMount(session, mount, reason, logger)
    // Whoever still uses it may do so for long.
    keeper?.flush()
  }
  const { format, isProbed } = chain.layers[0]
  const isGuessed = isProbed === true && format === 'raw'
  return { mountpoint, entries, warnings, isWritable, format, isGuessed, finished, stop }
}

async function sessionOf(
  transport: Transport,
  parts: SessionParts,
  main: MainThread,
): Promise<Session> {
  if (transport === 'direct') return new DirectSession(parts, mount => abandon(mount, parts.logger))
  // What most mounts never need.
  const { LibfuseSession } = await import('./libfuse/session.js')
  return new LibfuseSession(parts, main)
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

function cachesOf(chain: Chain, request: ServeRequest, threads: number): CacheSizes {
  const { metadataBytes = defaultMetadataBytes(chain.layers[0], threads) } = request
  return {
    metadataBytes: Math.floor(metadataBytes / threads),
    clusterBytes: Math.floor(CLUSTER_CACHE_BYTES / threads),
  }
}

/**
 * The bytes of tables that are kept unless told otherwise: all L2 or grain tables that the disk can have,
 * once for each thread, but at most 48 MiB in all. A thread of two then holds the tables of 192 GiB with
 * clusters of 64 KiB.
 */
export function defaultMetadataBytes(layer: LayerSpec, threads: number): number {
  return Math.min(MAX_METADATA_BYTES, threads * formatOf(layer).tableBytes(layer))
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

async function stopMount(
  session: Session,
  mount: MountInfo | undefined,
  reason: string,
  logger: Logger,
): Promise<void> {
  let current: MountInfo | undefined
  try {
    current = mount && mountAt(mount.mountpoint)
  } catch (error) {
    // No descriptor is left to read the list with, say; whoever asked may ask again.
    logger.error({ reason, why: (error as Error).message }, 'it could not be unmounted')
    return
  }
  // Unmounted already, or something else has been mounted there since.
  if (!current || current.device !== mount?.device) return
  try {
    await session.unmount(current, false)
  } catch (error) {
    logger.warn({ reason, why: (error as Error).message }, 'in use: detached and served to its end')
    try {
      await session.unmount(current, true)
    } catch (failure) {
      logger.error({ why: (failure as Error).message }, 'it could not be unmounted')
    }
  }
}

/** What status.json says that does not change. */
function statusOf(
  chain: Chain,
  entries: readonly CatalogEntry[],
  transport: Transport,
  threads: number,
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
    transport,
    threads,
    snapshots: chain.snapshots.length + chain.externalSnapshots.length,
    layers: chain.layers.map(layer => ({
      path: layer.path,
      format: layer.format,
      ...(layer.encryption && { encryption: layer.encryption.method }),
      ...(layer.dataFile && { dataFile: layer.dataFile.path }),
      ...(layer.extents && { extents: layer.extents.map(({ path }) => path) }),
    })),
  }
}
