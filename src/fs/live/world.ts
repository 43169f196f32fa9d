/**
 * A world is all that a mount shows at one time. When that changes, the main thread makes a new one as at mounting, and all
 * threads build their caches anew from it. So nothing that a thread keeps can be stale.
 *
 * A world is plain data and shared memory, which can be sent to threads as a message. What belongs to open handles is not part
 * of it: truncations, ownership, the texts of control files.
 */
import type { LayerSpec } from '../../formats/format.js'
import { ChangeWatch, type WatchedFile, watchedFiles } from '../../image/opening/change-watch.js'
import { type CatalogEntry, catalogOf } from '../../image/catalog.js'
import type { Chain } from '../../image/opening/chain.js'
import type { DiskMemory } from '../../image/writing/disk-memory.js'
import type { CacheSizes, Writing } from '../../image/reading/view-set.js'
import { ViewSet } from '../../image/reading/view-set.js'
import type { Timestamp } from '../../io/file-spec.js'
import type { Logger } from '../../log.js'
import type { NodeIds } from '../nodes/node-ids.js'
import { type ShownTable, withPartitions } from '../partitions/partition-files.js'
import { readableDisk } from '../scratch/readable-disk.js'
import type { ScratchDisks } from '../scratch/scratch-disks.js'
import type { WorkerStats } from '../status/stats.js'

export interface World {
  /** 0 at mounting, and one more for each change. */
  readonly number: number
  readonly layers: readonly LayerSpec[]
  readonly entries: readonly CatalogEntry[]
  /** The numbers of the files, in the order of the entries. */
  readonly ids: readonly number[]
  /** The text of partitions.json, if it is shown. */
  readonly partitions: string | undefined
  /** The tables of the disks that can be written, if their partitions are shown. */
  readonly tables: readonly ShownTable[]
  /** Present if the disk is written. */
  readonly memory: DiskMemory | undefined
  /** Allocated bytes by place in the catalog; -1 if not counted yet. */
  readonly allocated: SharedArrayBuffer
  /** When the folder has changed; undefined if it is as at mounting. */
  readonly modified: Timestamp | undefined
  /** How many snapshots there are, for status.json. */
  readonly snapshots: number
  /** Whether others may write the image meanwhile. */
  readonly isShared: boolean
  /** Present if the image is only read, and nobody else is supposed to write it. */
  readonly watched: Watched | undefined
}

export interface Watched {
  readonly files: readonly WatchedFile[]
  /** For ChangeWatch. */
  readonly word: SharedArrayBuffer
}

/** The main thread's part of a world. */
export interface OwnWorld {
  readonly chain: Chain
  readonly world: World
  readonly views: ViewSet
  readonly warnings: readonly string[]
}

export interface WorldParts {
  readonly caches: CacheSizes
  readonly counts: WorkerStats
  readonly ids: NodeIds
  /** Whether the partitions of each disk are files, too. */
  readonly showsPartitions: boolean
  /** Whether others may write the image meanwhile. */
  readonly isShared: boolean
  readonly logger: Logger
  /** Present where programs write to scratch copies: returns these, and makes them for the first world. */
  readonly scratchOf?:
    | ((entries: readonly CatalogEntry[], views: ViewSet, watched: Watched) => ScratchDisks)
    | undefined
}

/**
 * Makes the world of an image.
 * @param writing the main thread's part in writing; undefined if the disk is only read
 * @param known what is watched already, if the image's files are those of the world before
 */
export function makeWorld(
  chain: Chain,
  number: number,
  writing: Writing | undefined,
  known: Watched | undefined,
  { caches, counts, ids, showsPartitions, isShared, logger, scratchOf }: WorldParts,
): OwnWorld {
  const catalog = catalogOf(chain)
  const views = new ViewSet(chain.layers, caches, counts, writing)
  const watched = known ?? watchedOf(chain, isShared)
  const scratch = scratchOf?.(catalog.entries, views, watched as Watched)
  const readableAt = (entry: CatalogEntry, place: number) =>
    readableDisk(entry, place, views, scratch)
  const shown = showsPartitions ? withPartitions(catalog.entries, readableAt, logger) : undefined
  const isWritable = ({ place }: ShownTable) => scratch !== undefined || (writing && place === 0)
  const entries = shown?.entries ?? catalog.entries
  const allocated = new SharedArrayBuffer(entries.length * 8)
  new Float64Array(allocated).fill(-1)
  const now = Date.now()
  const world: World = {
    number,
    layers: chain.layers,
    entries,
    ids: ids.of(entries),
    partitions: shown?.text,
    tables: shown?.tables.filter(isWritable) ?? [],
    memory: writing?.memory,
    allocated,
    modified:
      number === 0
        ? undefined
        : { seconds: Math.floor(now / 1000), nanoseconds: (now % 1000) * 1e6 },
    snapshots: chain.snapshots.length + chain.externalSnapshots.length,
    isShared,
    watched,
  }
  return { chain, world, views, warnings: catalog.warnings }
}

const watchedOf = ({ isWritable, layers }: Chain, isShared: boolean): Watched | undefined =>
  isWritable || isShared ? undefined : { files: watchedFiles(layers), word: ChangeWatch.memory() }

/** Returns a thread's part in watching the image. @param onChange see ChangeWatch */
export const watchOf = (
  { watched }: Pick<World, 'watched'>,
  onChange: (path: string) => void,
): ChangeWatch | undefined => watched && new ChangeWatch(watched.files, watched.word, onChange)
