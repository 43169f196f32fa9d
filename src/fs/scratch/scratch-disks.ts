/** The scratch copies of a mount as one thread has them: the disks that programs write in place of the image's. */
import type { WritableDisk } from '../../formats/writable.js'
import type { CatalogEntry } from '../../image/catalog.js'
import {
  openScratchDisk,
  type ScratchDisk,
  type ScratchLayer,
  type ScratchThread,
} from '../../image/scratch/scratch-layer.js'
import type { ChangeWatch } from '../../image/opening/change-watch.js'
import type { CacheSizes, ViewSet } from '../../image/reading/view-set.js'

/** The memory that threads share for a copy. */
export interface SharedScratch extends ScratchLayer {
  /** The place in the catalog of the disk or snapshot that it is a copy of. */
  readonly place: number
  /** For Truncations, Ownership and PageDropper. */
  readonly truncations: SharedArrayBuffer
  readonly ownership: SharedArrayBuffer
  readonly pageDrops: SharedArrayBuffer
}

/** Where a thread gets its copies from. */
export interface ScratchSource {
  /** Returns what is shared of the copy of the file at `place`, if it has been made. */
  find(place: number): SharedScratch | undefined
  /** Does the same, and makes it if need be. Throws SystemError. */
  make(place: number): SharedScratch
  /** Returns what is shared of all copies that have been made. */
  all(): Iterable<SharedScratch>
  /** Starts the thread that drops pages of the file at `place`. */
  startPageDropper(place: number): void
}

export interface OpenScratch extends ScratchDisk {
  readonly shared: SharedScratch
}

interface Parts {
  readonly writer: ScratchThread
  /** The disks and snapshots of the image, in any world: their places never change. */
  readonly entries: readonly CatalogEntry[]
  readonly views: ViewSet
  /** Tells whether others have changed the image. */
  readonly watch: ChangeWatch | undefined
  /** The path of the image. */
  readonly path: string
  readonly caches: CacheSizes
}

/** The tables of a snapshot's copy that each thread keeps, in bytes: programs may write to many of them. */
const SNAPSHOT_CACHES: CacheSizes = { metadataBytes: 2 ** 20, clusterBytes: 2 ** 16 }

/** They stay when the listing changes: the image below never does. */
export class ScratchDisks {
  private readonly disks = new Map<number, OpenScratch>()

  constructor(
    private readonly parts: Parts,
    readonly source: ScratchSource,
  ) {}

  /** The image below. */
  get base(): ViewSet {
    return this.parts.views
  }

  find(place: number): OpenScratch | undefined {
    const known = this.disks.get(place)
    if (known) return known
    const shared = this.source.find(place)
    return shared && this.opened(shared)
  }

  /** Does the same, and makes the copy if need be. Throws SystemError. */
  open(place: number): OpenScratch {
    return this.find(place) ?? this.opened(this.source.make(place))
  }

  all(): OpenScratch[] {
    return [...this.source.all()].map(shared => this.opened(shared))
  }

  /** Returns whether another disk had something to flush: what was freed there is given back now. */
  flushAllBut(own: WritableDisk): boolean {
    const dirty = this.all().filter(({ disk }) => disk !== own && disk.isDirty)
    for (const { disk } of dirty) if (disk.failure === '') disk.flush()
    return dirty.length > 0
  }

  private opened(shared: SharedScratch): OpenScratch {
    const { place } = shared
    const known = this.disks.get(place)
    if (known) return known
    const { entries, views, writer, watch, path } = this.parts
    const base = { view: views.viewOf(entries[place] as CatalogEntry), watch, path }
    const caches = place === 0 ? this.parts.caches : SNAPSHOT_CACHES
    const opened = { ...openScratchDisk(shared, base, caches, writer), shared }
    this.disks.set(place, opened)
    return opened
  }
}
