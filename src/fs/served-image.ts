/**
 * The image of a mount as the main thread has it: what it shows (world.ts), the memory that threads share, and the disk. A change
 * replaces the world.
 */
import type { LayerSpec } from '../formats/format.js'
import { formatOf } from '../formats/registry.js'
import type { CatalogEntry } from '../image/catalog.js'
import type { Chain } from '../image/opening/chain.js'
import { createDiskMemory, type DiskMemory } from '../image/writing/disk-memory.js'
import type { CacheSizes, ViewSet } from '../image/reading/view-set.js'
import { removedFiles, storeOf } from '../image/layer.js'
import type { Logger } from '../log.js'
import { Backings } from './nodes/backings.js'
import { DiskKeeper, type Keeper } from './writing/disk-keeper.js'
import { stallMessage } from './status/diagnostics.js'
import { NodeIds } from './nodes/node-ids.js'
import { OldWorlds } from './live/old-worlds.js'
import type { MountOptions } from './mounting/options.js'
import { type ReadableDisk, readableDisk } from './scratch/readable-disk.js'
import { ScratchDisks } from './scratch/scratch-disks.js'
import { ScratchFiles } from './scratch/scratch-files.js'
import { ScratchKeeper } from './scratch/scratch-keeper.js'
import { ScratchMaker, type ScratchOptions } from './scratch/scratch-maker.js'
import { sharedStats, WorkerStats } from './status/stats.js'
import { tornNames, tornWarning } from './nodes/torn.js'
import {
  makeWorld,
  type OwnWorld,
  type Watched,
  watchOf,
  type World,
  type WorldParts,
} from './live/world.js'

const MAX_METADATA_BYTES = 48 * 2 ** 20
/** Decompressed clusters of all threads together. */
const CLUSTER_CACHE_BYTES = 16 * 2 ** 20

export type WhatChanged = 'files' | 'tables' | 'content'

export class ServedImage {
  /** The warnings of opening. */
  readonly warnings: readonly string[]
  /** The caches of each thread. */
  readonly caches: CacheSizes
  /** The counts of all threads; the main thread, which flushes, counts as a worker does. */
  readonly stats: SharedArrayBuffer
  readonly counts: WorkerStats
  /** Present where programs write to scratch copies. */
  readonly scratch: { readonly maker: ScratchMaker; readonly files: ScratchFiles } | undefined
  /** Called when the main thread's part of a scratch copy has noticed that others have changed the file at a path. */
  onChanged: (path: string) => void = () => {}
  /** Present where something is written. */
  readonly keeper: Keeper | undefined
  readonly backings = new Backings()
  private readonly diskKeeper: DiskKeeper | undefined
  private readonly parts: WorldParts
  private readonly oldWorlds = new OldWorlds()
  private scratchDisks: ScratchDisks | undefined
  private now: OwnWorld

  /**
   * @param threads the number of worker threads
   * @param metadataBytes of tables to keep, of all threads together; undefined for the rule of defaultMetadataBytes
   * @param kept the overlay that keeps what is written to the disk
   * Throws ImageError if there is no folder for scratch copies.
   */
  constructor(
    chain: Chain,
    readonly threads: number,
    metadataBytes: number | undefined,
    private readonly logger: Logger,
    private readonly options: Pick<
      MountOptions,
      'partitions' | 'forceShare' | 'growable' | 'scratch'
    >,
    kept?: LayerSpec,
  ) {
    const [top] = chain.layers
    this.caches = cachesOf(top, metadataBytes, Math.max(1, threads))
    this.stats = sharedStats(threads + 1)
    this.counts = new WorkerStats(this.stats, threads)
    const { caches, counts } = this
    const { partitions: showsPartitions, forceShare: isShared, scratch } = options
    let maker: ScratchMaker | undefined
    const scratchOf = (entries: readonly CatalogEntry[], views: ViewSet, watched: Watched) => {
      if (this.scratchDisks) return this.scratchDisks
      const watch = watchOf({ watched }, path => this.onChanged(path))
      maker = new ScratchMaker(chain, entries, scratch as ScratchOptions, threads, kept)
      const writer = { thread: threads, onStall: this.onStall }
      const parts = { entries, views, watch, path: top.path, caches, writer }
      this.scratchDisks = new ScratchDisks(parts, maker)
      return this.scratchDisks
    }
    this.parts = {
      ...{ caches, counts, ids: new NodeIds(), showsPartitions, isShared, logger },
      scratchOf: scratch && scratchOf,
    }
    const memory = this.newMemory(chain)
    this.now = this.worldOf(chain, 0, memory, undefined)
    const torn = isShared ? tornWarning(tornNames(this.world)) : undefined
    const own = torn === undefined ? [] : [torn]
    this.warnings = [...chain.warnings, ...own, ...this.now.warnings, ...(memory?.warnings ?? [])]
    const countFlush = () => counts.countFlush()
    const { disk } = this.views
    const removed = () => removedFiles(top)
    this.diskKeeper = disk && new DiskKeeper(disk, countFlush, removed, logger)
    this.scratch = maker && { maker, files: this.scratchFiles(this.scratchDisks as ScratchDisks) }
    this.keeper =
      this.diskKeeper ??
      (this.scratch && new ScratchKeeper(this.scratch.files, countFlush, logger, kept))
  }

  /** Whether programs can write anything. */
  get isWritable(): boolean {
    return this.chain.isWritable || this.scratch !== undefined
  }

  /** Whether several files show the same bytes and can be written. */
  get sharesBytes(): boolean {
    return this.isWritable && this.parts.showsPartitions
  }

  get chain(): Chain {
    return this.now.chain
  }

  get world(): World {
    return this.now.world
  }

  /** The main thread's views; its disk is `views.disk`. */
  get views(): ViewSet {
    return this.now.views
  }

  get entries(): readonly CatalogEntry[] {
    return this.world.entries
  }

  get memory(): DiskMemory | undefined {
    return this.world.memory
  }

  /**
   * Replaces the world: the same image as `chain` has it. Throws ImageError, SystemError; then the old world stays.
   * @param changed what has changed: the list of files, the disk's tables, or what the disk shows, too
   */
  replace(chain: Chain, changed: WhatChanged): void {
    const { memory, world } = this
    // Handles that are passed through keep the old file, and the kernel allows an inode one file at a time.
    const isOpenedAnew = chain.layers[0].fd !== this.chain.layers[0].fd
    if (isOpenedAnew) this.parts.ids.renew(id => this.backings.isPassed(id))
    const next = changed === 'files' ? memory : this.newMemory(chain)
    const watched = changed === 'files' && chain === this.chain ? world.watched : undefined
    this.now = this.worldOf(chain, world.number + 1, next, watched)
    this.oldWorlds.add()
    const { disk } = this.views
    if (disk) this.diskKeeper?.follow(disk)
    if (memory === undefined || next === undefined || next === memory) return
    for (const warning of next.warnings) this.logger.warn(warning)
    const written =
      changed === 'content' ? Date.now() : (new Float64Array(memory.times)[0] as number)
    new Float64Array(next.times)[0] = written
  }

  private newMemory(chain: Chain): DiskMemory | undefined {
    const [top] = chain.layers
    return chain.isWritable ? createDiskMemory(top, this.threads + 1, storeOf(top)) : undefined
  }

  private worldOf(
    chain: Chain,
    number: number,
    memory: DiskMemory | undefined,
    watched: Watched | undefined,
  ): OwnWorld {
    const writing = memory && { memory, thread: this.threads, onStall: this.onStall }
    return makeWorld(chain, number, writing, watched, this.parts)
  }

  private readonly onStall = (seconds: number) => this.logger.warn(stallMessage(seconds))

  /** Returns the disk at `place` of the catalog as it reads now. Throws ImageError if its table is impossible. */
  readableAt(place: number): ReadableDisk {
    return readableDisk(this.entries[place] as CatalogEntry, place, this.views, this.scratchDisks)
  }

  /** The main thread serves these only through libfuse, where their list never changes. */
  private scratchFiles(disks: ScratchDisks): ScratchFiles {
    const { entries, counts } = this
    return new ScratchFiles({
      ...{ entries, disks, dropShared: undefined },
      allocated: new Float64Array(this.world.allocated),
      isGrowable: this.options.growable,
      onFlush: () => counts.countFlush(),
      // The main thread has to answer other requests meanwhile.
      pageDropperStartMs: 0,
    })
  }
}

function cachesOf(
  layer: LayerSpec,
  metadataBytes: number | undefined,
  threads: number,
): CacheSizes {
  const tables = metadataBytes ?? defaultMetadataBytes(layer, threads)
  return {
    metadataBytes: Math.floor(tables / threads),
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
