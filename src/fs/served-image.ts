/** The image of a mount as the main thread has it: what it shows, the memory that threads share, and the disk. */
import type { LayerSpec } from '../formats/format.js'
import { formatOf } from '../formats/registry.js'
import { type CatalogEntry, catalogOf } from '../image/catalog.js'
import type { Chain } from '../image/chain.js'
import { createDiskMemory, type DiskMemory } from '../image/disk-memory.js'
import { type CacheSizes, ViewSet } from '../image/view-set.js'
import { removedFiles, storeOf } from '../image/layer.js'
import type { Logger } from '../log.js'
import { DiskKeeper } from './disk-keeper.js'
import { stallMessage } from './diagnostics.js'
import { withPartitions } from './partition-files.js'
import { sharedStats, WorkerStats } from './stats.js'

const MAX_METADATA_BYTES = 48 * 2 ** 20
/** Decompressed clusters of all threads together. */
const CLUSTER_CACHE_BYTES = 16 * 2 ** 20

export class ServedImage {
  readonly entries: readonly CatalogEntry[]
  readonly warnings: readonly string[]
  /** The text of partitions.json, if it is shown. */
  readonly partitions: string | undefined
  /** The caches of each thread. */
  readonly caches: CacheSizes
  /** The counts of all threads; the main thread, which flushes, counts as a worker does. */
  readonly stats: SharedArrayBuffer
  readonly counts: WorkerStats
  readonly memory: DiskMemory | undefined
  readonly views: ViewSet
  /** Present where the disk is written. */
  readonly keeper: DiskKeeper | undefined

  /**
   * @param threads the number of worker threads
   * @param showsPartitions whether the partitions of each disk are files, too
   * @param metadataBytes of tables to keep, of all threads together; undefined for the rule of defaultMetadataBytes
   */
  constructor(
    readonly chain: Chain,
    readonly threads: number,
    metadataBytes: number | undefined,
    logger: Logger,
    showsPartitions = false,
  ) {
    const [top] = chain.layers
    const { entries, warnings } = catalogOf(chain)
    this.caches = cachesOf(top, metadataBytes, Math.max(1, threads))
    this.stats = sharedStats(threads + 1)
    this.memory = chain.isWritable ? createDiskMemory(top, threads + 1, storeOf(top)) : undefined
    this.warnings = [...chain.warnings, ...warnings, ...(this.memory?.warnings ?? [])]
    const counts = new WorkerStats(this.stats, threads)
    this.counts = counts
    const onStall = (seconds: number) => logger.warn(stallMessage(seconds))
    const writing = this.memory && { memory: this.memory, thread: threads, onStall }
    this.views = new ViewSet(chain.layers, this.caches, counts, writing)
    const countFlush = () => counts.countFlush()
    const removed = () => removedFiles(top)
    const { disk } = this.views
    const shown = showsPartitions ? withPartitions(entries, this.views, logger) : undefined
    this.entries = shown?.entries ?? entries
    this.partitions = shown?.text
    this.keeper = disk && new DiskKeeper(disk, countFlush, removed, logger)
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
