/** The libfuse transport: serves a mount with fuse-native's callbacks on the main thread. */
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { closeFile, hasHungUp } from '../../io/libc.js'
import { TextSlots } from '../status/control.js'
import { type MountInfo, mountAt } from '../../io/mountinfo.js'
import { Ownership } from '../nodes/ownership.js'
import { Forgetter } from '../live/forgetter.js'
import { dropPages, PageDropper } from '../writing/page-dropper.js'
import { faultLogger, type LogEntry, statsText, statusText } from '../status/diagnostics.js'
import type { ViewSet } from '../../image/reading/view-set.js'
import type { FileSystemParts } from '../nodes/node-operations.js'
import { OpenCounts } from '../nodes/open-counts.js'
import type { Forgetting, MainThread, Session, SessionParts } from '../session.js'
import { servedFiles } from '../nodes/passthrough.js'
import { startPageDropper } from '../writing/start-page-dropper.js'
import { tornStatus } from '../nodes/torn.js'
import { treeOf } from '../live/tree-of-world.js'
import type { Tree } from '../nodes/tree.js'
import { Truncations } from '../writing/truncations.js'
import { watchOf, type World } from '../live/world.js'
import { LibfuseFs } from './adapter.js'
import { lackLines } from './lacks.js'
import { mountByLibfuse } from './mount.js'
import { unmountApart } from './unmount-apart.js'

/** The time between looks whether the connection is over: unmounted and no longer used, or aborted. */
const LOOK_MS = 50

export class LibfuseSession implements Session {
  readonly finished: Promise<void>
  private finish: () => void = () => {}
  private readonly fileSystem: LibfuseFs
  private readonly dropper = new PageDropper()
  private readonly forgetter = new Forgetter()
  private tree: Tree
  /** The threads that drop pages, by the places of their files: when each of them serves. */
  private readonly droppers = new Map<number, Promise<void>>()
  private readonly lasting: Omit<
    FileSystemParts,
    'tree' | 'views' | 'layers' | 'allocated' | 'controlText'
  >
  private device = -1

  constructor(
    private readonly parts: SessionParts,
    { views, counts, files }: MainThread,
  ) {
    this.finished = new Promise(resolve => {
      this.finish = resolve
    })
    const { world, isGrowable, opens, looks, onLook, logger } = parts
    const log = ({ level, message, detail }: LogEntry) => logger[level](detail ?? {}, message)
    const logFault = faultLogger(log)
    if (parts.scratch) parts.scratch.onPageDrops = place => void this.dropPages(place)
    this.tree = treeOf(world, parts.appearance)
    this.lasting = {
      slots: new TextSlots(),
      isGrowable,
      manages: parts.changeTree !== undefined,
      onFlush: () => counts.countFlush(),
      truncations: new Truncations(undefined, () => void this.dropPages(0)),
      ownership: new Ownership(),
      opens: new OpenCounts(opens),
      ...(files && { files }),
      // Do not wait for the thread's start: this thread has to answer meanwhile.
      dropPages: dropPages(this.dropper, 0),
    }
    // Log after the answer, so that a failing log cannot prevent it.
    this.fileSystem = new LibfuseFs(this.partsOf(world, views), {
      stats: counts,
      gate: parts.gate,
      onTruncated: place => this.dropPages(parts.scratch?.find(place) ? place : 0),
      ...(looks && { whenFresh: act => (looks.isDue() ? void onLook().then(act) : act()) }),
      changeTree: parts.changeTree,
      onError: (error, opcode) => void setImmediate(() => logFault(error, opcode)),
    })
  }

  async prepare(): Promise<void> {}

  async mount(): Promise<MountInfo | undefined> {
    const { mountpoint, mountRequest, onlyUids, looks, logger } = this.parts
    const isShared = looks !== undefined
    const request = { ...mountRequest, isShared, allowRoot: onlyUids !== undefined }
    const device = await mountByLibfuse(request, this.fileSystem.operations())
    this.device = device
    logger.info({ lacks: lackLines() }, 'libfuse 2 lacks what the direct transport has')
    void this.untilEnd(device)
    return mountAt(mountpoint)
  }

  show(world: World, views: ViewSet): void {
    this.tree = treeOf(world, this.parts.appearance)
    this.fileSystem.serve(this.partsOf(world, views))
  }

  /** Does nothing: the main thread decompresses alone. */
  async renewHelper(): Promise<void> {}

  /**
   * Makes the kernel forget pages only: libfuse 2 does not tell the kernel's numbers of folders, so names and attributes of what may
   * change are never kept.
   */
  async forget({ files }: Forgetting): Promise<void> {
    const nodes = files.flatMap(({ id, pages }) => (pages ? [this.tree.node(id)] : []))
    const paths = nodes.flatMap(node =>
      node?.kind === 'image' ? [path.join(this.parts.mountpoint, node.name)] : [],
    )
    if (paths.length === 0) return
    await this.forgetter.forget({ names: [], files: [], paths, device: this.device })
  }

  unmount(mount: MountInfo, detach: boolean): Promise<void> {
    return unmountApart(mount, detach)
  }

  async end(): Promise<void> {
    this.fileSystem.end()
  }

  private partsOf(world: World, views: ViewSet): FileSystemParts {
    const { status, stats, started, onChanged, onLook, passthrough } = this.parts
    const { why } = passthrough
    const { layers, allocated, snapshots, partitions } = world
    const watch = watchOf(world, onChanged)
    return {
      ...this.lasting,
      tree: this.tree,
      views,
      layers,
      watch,
      ...(world.isShared && { onGone: () => void onLook() }),
      allocated: new Float64Array(allocated),
      controlText: {
        status: () =>
          statusText(
            {
              ...status,
              ...tornStatus(world),
              files: servedFiles(this.tree.images(), () => ({ why })),
            },
            snapshots,
            views,
            layers,
            watch,
            this.lasting.files,
          ),
        stats: () => statsText(stats, started, 1, layers),
        partitions,
      },
    }
  }

  private dropPages(place: number): Promise<void> {
    const known = this.droppers.get(place)
    if (known) return known
    const { world, mountpoint, logger, scratch } = this.parts
    const shared = scratch?.find(place)?.pageDrops ?? this.dropper.shared
    const node = path.join(mountpoint, world.entries[place]?.name ?? '')
    const serves = startPageDropper({ shared, device: this.device, node }, error =>
      logger.error({ stack: error.stack }, 'the thread that drops pages has died'),
    )
    this.droppers.set(place, serves)
    return serves
  }

  /** Waits for the end of the connection, which the package does not report. */
  private async untilEnd(device: number): Promise<void> {
    while (!hasHungUp(device)) await sleep(LOOK_MS)
    closeFile(device)
    this.fileSystem.end()
    this.finish()
  }
}
