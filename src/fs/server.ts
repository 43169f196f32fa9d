/**
 * A mount from its beginning to its end, on the main thread: opening, unlocking, serving and ending.
 * The requests are the transport's (direct.ts, libfuse/session.ts).
 */
import { ControlSocket } from '../control/listener.js'
import { type Greeting, PROTOCOL } from '../control/protocol.js'
import { join, resolve } from 'node:path'
import { MountError, ProtocolError } from '../errors.js'
import type { CatalogEntry } from '../image/catalog.js'
import { type Chain, closeChain, type OpenOptions } from '../image/opening/chain.js'
import { type AskPassphrase, lockChain, unlockChain } from '../image/opening/encryption.js'
import { openChain } from '../image/opening/open-chain.js'
import { filesOf } from '../image/layer.js'
import { rereadShared } from '../image/opening/reread-shared.js'
import { openKeptOverlay } from '../image/scratch/kept-overlay.js'
import { orInterrupted } from '../interruption.js'
import { type MountInfo, realMountpoint } from '../io/mountinfo.js'
import { nameEndingServer } from '../io/processes.js'
import type { Logger } from '../log.js'
import { ChangeWatcher } from './live/change-watcher.js'
import { schemeOf } from '../sources/address.js'
import { endWaiting, onSourceLine } from '../sources/registry.js'
import { VERSION } from '../version.js'
import { Changer } from './live/changer.js'
import { DirectSession } from './workers/direct.js'
import { Follower } from './live/follower.js'
import { createGateMemory, Gate } from './workers/gate.js'
import type { LiveDisk } from './live/live-changes.js'
import { liveRequests } from './live/live-requests.js'
import { LookRequests } from './live/look-requests.js'
import { checkMountpoint } from './mounting/mount.js'
import { OpenCounts } from './nodes/open-counts.js'
import { MountedDisk } from './live/mounted-disk.js'
import type { MountOptions } from './mounting/options.js'
import { Refresher } from './live/refresher.js'
import { PartitionLister } from './partitions/partition-lister.js'
import { checkNotMounted, namingItsMount, whenReleased } from './mounting/release.js'
import { ServedImage } from './served-image.js'
import { abandon, bringUp, stopMount } from './served-mount.js'
import type { MainThread, Session, SessionParts, Transport } from './session.js'
import { sessionParts } from './session-parts.js'
import { TableWrites } from './partitions/table-writes.js'
import type { TreeChange } from './workers/errands.js'
import { treeChanger } from './live/tree-changes.js'
import { isOfDisk } from './live/tree-of-world.js'
import { DISK_ID } from './nodes/tree.js'
import { WriteBack } from './writing/write-back.js'

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
  /** Called when the image is open. */
  readonly onOpened?: () => void
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
  readonly access: 'read-only' | 'read-write' | 'scratch'
  /** The file that keeps what is written to a scratch copy of the disk, if one does. */
  readonly keptIn: string | undefined
  /** The image's format, and whether it is but a guess: nothing in the file says raw. */
  readonly format: string
  readonly isGuessed: boolean
  /**
   * Settles when the last request has been served: after unmounting, by whomever. False when not all
   * that was written could be kept.
   */
  readonly finished: Promise<boolean>
  /** The changes that the mounted image allows. */
  readonly live: LiveDisk
  /** Unmounts; a mount that is in use is detached and served to its end. */
  stop(reason: string): Promise<void>
}

/**
 * Mounts and resolves when the mount answers. Throws ImageError, MountError; then nothing is left. After
 * Interrupted a key may still be being derived: end the process at once.
 */
export async function startServer(request: ServeRequest, logger: Logger): Promise<Server> {
  const { access, forceShare, scratch } = request.options
  // Check this first: without the package no passphrase is needed.
  if (request.transport === 'libfuse') (await import('./libfuse/package.js')).loadFuseNative()
  const open = () =>
    openChain(request.image, {
      ...request.open,
      access: scratch || access === 'ro' ? 'read' : access === 'rw' ? 'write' : 'write if possible',
      takesLocks: !forceShare,
    })
  const opened = await whenReleased(open, request.say, request.interruption).catch(async error => {
    throw await namingItsMount(error, request.image)
  })
  let chain = opened
  request.onOpened?.()
  try {
    await checkNotMounted(request.image, request.mountpoint)
    checkMountpoint(request.mountpoint)
    chain = await orInterrupted(unlockChain(opened, request.askPassphrase), request.interruption)
    if (forceShare) chain = rereadShared(chain)
    return await serveBySomeTransport(chain, request, logger)
  } catch (error) {
    lockChain(chain)
    closeChain(opened)
    throw error
  }
}

/** Opens the image of a mount that only reads it, while that mount has it. */
function openAgain({ image, open, options }: ServeRequest): Chain {
  const { forceShare } = options
  const chain = openChain(image, { ...open, access: 'read', takesLocks: !forceShare })
  if (!forceShare) return chain
  try {
    return rereadShared(chain)
  } catch (error) {
    closeChain(chain)
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
  const mountpoint = realMountpoint(request.mountpoint)
  const { metadataBytes, options } = request
  const isShared = options.partitions && (chain.isWritable || options.scratch !== undefined)
  if (isShared && transport === 'libfuse') {
    const way = options.scratch ? 'leave out scratch or partitions' : '-o ro,partitions'
    throw new MountError(
      `through libfuse, partitions can only be read (${way}): it cannot tell the kernel what has changed`,
    )
  }
  if (options.writeback) requireWriteback(chain, transport)
  if (transport === 'libfuse' && chain.layers.flatMap(filesOf).some(file => file.source)) {
    throw new MountError(
      'through libfuse, only files of this machine can be mounted (leave out --transport): its one thread would wait for the network',
    )
  }
  // The callbacks of libfuse run on the main thread.
  const threads = transport === 'direct' ? request.threads + Number(isShared) : 0
  const { file } = options.scratch ?? {}
  const kept = file === undefined ? undefined : await openKeptOverlay(file, chain)
  const image = new ServedImage(chain, threads, metadataBytes, logger, options, kept)
  const { entries, warnings, keeper, views, counts, scratch, isWritable } = image
  const gate = new Gate(createGateMemory(threads))
  const opens = new OpenCounts()
  const watcher = new ChangeWatcher(image, scratch !== undefined, logger)
  const onChanged = (path: string) => watcher.noticed(path)
  image.onChanged = onChanged
  const control = ControlSocket.open(chain.layers[0].fd, logger)
  const looks = options.forceShare ? new LookRequests() : undefined
  const onLook = async () => follower?.look()
  const tables = new TableWrites()
  const onTables = () => lister.list()
  const changeTree =
    options.manage && chain.isWritable
      ? (change: TreeChange) => treeChanger(image, live, changer, logger)(change)
      : undefined
  const shared = {
    gate,
    opens: opens.shared,
    onChanged,
    looks,
    onLook,
    tables,
    onTables,
    changeTree,
    onOverrun: () => void writeBack?.correctSize(),
  }
  const parts = sessionParts(image, options, mountpoint, transport, shared, logger, control?.path)
  const session = await sessionOf(transport, parts, { views, counts, files: scratch?.files })
  const changer = new Changer(image, session, gate, logger)
  const lister = new PartitionLister(image, changer, tables, logger)
  const follower = looks && new Follower(image, changer, looks, logger)
  const mount = await bringUp(session, mountpoint, threads, logger).catch(error => {
    keeper?.close()
    control?.close()
    if (kept) closeChain({ layers: [kept] })
    throw error
  })
  const { path, format, isProbed } = chain.layers[0]
  logger.info({ image: path, mountpoint, files: entries.length, isWritable, transport }, 'mounted')
  const disk = () => ({
    path: join(mountpoint, image.entries.find(isOfDisk)?.name ?? ''),
    sizeBytes: image.views.disk?.sizeBytes ?? 0,
  })
  const { device = '' } = mount ?? {}
  const forgetPages = () => session.forget({ names: [], files: [{ id: DISK_ID, pages: true }] })
  const writeBack = options.writeback
    ? new WriteBack({ opens, mountpoint, device, disk, forgetPages, logger })
    : undefined
  keeper?.start(options.commitSeconds, writeBack && (() => writeBack.sync()))
  onSourceLine(line => logger.error({ file: line.path }, line.message))
  watcher.start(() => changer.forgetPages())
  const { allowPaths = [] } = request.open
  // A server in the background changes its folder.
  const absolute = allowPaths.map(name => (schemeOf(name) === undefined ? resolve(name) : name))
  const isRemote = schemeOf(request.image) !== undefined
  const again = {
    ...request,
    image: isRemote ? request.image : path,
    open: { ...request.open, allowPaths: absolute },
  }
  const refresher = new Refresher(image, changer, () => openAgain(again), logger)
  const live = new MountedDisk({ image, changer, opens, mountpoint, allowPaths, writeBack })
  control?.serve(() => greetingOf(image, mountpoint, mount), liveRequests(image, live, refresher))
  const finished = session.finished.then(async () => {
    nameEndingServer()
    watcher.stop()
    control?.close()
    // The workers end with the mount. If they failed, the mount must not stay without them.
    await stopMount(session, mount, 'no worker is left', logger)
    await changer.end()
    const isKept = keeper?.close() ?? true
    closeChain(image.chain)
    lockChain(image.chain)
    logger.info({ mountpoint }, 'unmounted')
    return isKept
  })
  const stop = async (reason: string) => {
    endWaiting()
    await stopMount(session, mount, reason, logger)
    // Programs that still use it may do so for long.
    keeper?.flush()
  }
  const isGuessed = isProbed === true && format === 'raw'
  const access = scratch ? 'scratch' : isWritable ? 'read-write' : 'read-only'
  const server = { mountpoint, entries, warnings, access, format, isGuessed } as const
  return { ...server, keptIn: kept?.path, finished, live, stop }
}

/** Throws MountError for what cannot be mounted with -o writeback. */
function requireWriteback(chain: Chain, transport: Transport): void {
  if (!chain.isWritable) {
    throw new MountError(`${chain.layers[0].path} can only be read: leave out -o writeback`)
  }
  if (transport === 'libfuse') {
    throw new MountError('writeback is not possible through libfuse: leave out -o writeback')
  }
}

const greetingOf = (
  { chain, world }: ServedImage,
  mountpoint: string,
  mount: MountInfo | undefined,
): Greeting => ({
  protocol: PROTOCOL,
  version: VERSION,
  pid: process.pid,
  image: chain.layers[0].path,
  mountpoint,
  device: mount?.device ?? '',
  isWritable: chain.isWritable,
  diskFiles: world.entries.filter(isOfDisk).map(({ name }) => name),
})

async function sessionOf(
  transport: Transport,
  parts: SessionParts,
  main: MainThread,
): Promise<Session> {
  if (transport === 'direct') return new DirectSession(parts, mount => abandon(mount, parts.logger))
  // Most mounts never need these.
  const { LibfuseSession } = await import('./libfuse/session.js')
  return new LibfuseSession(parts, main)
}
